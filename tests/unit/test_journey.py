"""One trace of what the gateway saw and what its hops told."""

from millrace import messages as m
from millrace.spans import Process, Span
from millrace.telemetry import child_of
from services.gateway.journey import LINGER_S, MOST_HOPS, Journeys
from services.gateway.owner.entry import Entry
from services.gateway.visit import Visit

ENGINES = [Process("engine", "e1"), Process("engine", "e2")]


def travelled(*, content: bool = False, sampled: bool = True, noise: int = 0) -> list[Span]:
    """A request whose first engine died after three tokens without telling of its decoding."""
    journeys = Journeys(Process("gateway", "gw"), content=content)
    visit = Visit(traceparent=child_of("", sampled=sampled), method="POST", status=200)
    journeys.arrived(visit)
    prompt = m.Prompt("gw-1", 1, "sim", m.Text("the question"), m.Sampling(1))
    trace = child_of(visit.traceparent, sampled=sampled)
    entry = Entry(prompt, "sim", 1.0, 99.0, traceparent=trace, heard=["the ", "answer"])
    journey = journeys.opened(entry, visit.traceparent, 1.0)
    journey.admitted(m.Admitted("gw-1", 1, 2, 9, hops=[m.Hop("publish", 101.0, 101.1)]), 1.2)
    journey.granted(m.Granted("gw-1", 1, [], "d", 100), "e1", 1.3)
    journey.told(ENGINES[0], [m.Hop("claim", 101.1, 101.3, 1), m.Hop("prefill", 101.1, 101.4, 1)])
    entry.committed, entry.spoken_at = [1, 2, 3], 2.0
    journey.lost("died", 2.5)
    journey.granted(m.Granted("gw-1", 3, [1, 2, 3], "d", 100), "e2", 3.0)
    journey.told(ENGINES[1], [m.Hop("noise", 103.0, 103.0, 3)] * noise)
    entry.committed, entry.finish = [1, 2, 3, 4], "stop"
    journeys.ended("gw-1", 4.0)
    visit.left_at = 4.0
    journeys.left(visit, 4.0)
    assert [] == journeys.due(4.0 + LINGER_S / 2)
    (stay,) = journeys.due(4.0 + LINGER_S)
    assert journeys.of("gw-1") is None
    return journeys.trace(stay, 100.0)


def test_what_an_engine_could_not_tell_its_owner_tells() -> None:
    """From its last hop to the moment it was given up nothing is left out, and the next attempt says why."""
    spans = {span.name: span for span in travelled()}
    first, second, decode, silence = (spans[n] for n in ("attempt 1", "attempt 2", "decode", "silence"))

    assert (101.4, 102.0, 3, "gw") == (
        decode.began,
        decode.ended,
        decode.attributes["tokens"],
        decode.process.id,
    )
    assert (102.0, 102.5, "died") == (silence.began, silence.ended, silence.attributes["millrace.reason"])
    assert (first.id, {"millrace.reason": "died"}) == (second.links[0].span, second.links[0].attributes)
    assert {first.id} == {decode.parent, silence.parent}


def test_what_was_said_is_recorded_only_if_that_is_switched_on() -> None:
    """Neither the question nor the answer is anywhere in a trace otherwise."""
    assert "the question" not in repr(travelled()) and "answer" not in repr(travelled())
    assert "the question" in repr(travelled(content=True)) and "the answer" in repr(travelled(content=True))


def test_a_request_that_is_not_sampled_leaves_nothing() -> None:
    """No span at all."""
    assert [] == travelled(sampled=False)


def test_a_trace_is_bounded() -> None:
    """However much an engine tells of."""
    assert len(travelled(noise=1000)) < MOST_HOPS + 15
