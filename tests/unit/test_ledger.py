"""The ledger's rules, one by one. The seeded worlds of test_simulation.py try them together."""

import pytest
from msgspec import structs

from millrace import messages as m
from millrace.errors import Code
from millrace.subjects import ENGINE, Send
from services.gateway.desk import Piece
from services.gateway.effects import Bury, Check, Delete, Effect, Probe, Resubmit, Settle
from services.gateway.entry import Entry
from services.gateway.ledger import Ledger

REQUEST = "gw-" + "0" * 32


def opened(*, deadline: float = 100.0) -> tuple[Ledger, Entry]:
    ledger = Ledger("gw")
    prompt = m.Prompt(REQUEST, 1, "sim", m.Text("hi"), m.Sampling(1))
    entry = Entry(prompt, "sim", opened_at=0.0, deadline=deadline)
    ledger.open(entry)
    ledger.here(m.Here("detokenizer", "d1", 1, "ready"), 0.0)
    ledger.admitted(REQUEST, 7, 3, 0.0)
    return ledger, entry


def claim(
    ledger: Ledger, engine: str = "e1", lease: str = "L1", now: float = 0.0, busy: int = 0
) -> m.ClaimReply:
    return ledger.claim(m.Claim(REQUEST, engine, lease, busy), now)[0]


def said(epoch: int, index: int, *tokens: int, finish: m.Finish = "", engine: str = "e1") -> m.Delta:
    return m.Delta(
        engine, "d1", [m.Said(REQUEST, epoch, index, list(tokens), [f"{t}." for t in tokens], finish)]
    )


def verbs(effects: list[Effect]) -> list[tuple[str, str]]:
    return [(e.lease, e.verb) for e in effects if isinstance(e, Settle)]


def test_tokens_count_from_the_current_epoch_and_the_next_index() -> None:
    """Repeated tokens are taken once, tokens of a lost epoch not at all, and half-known ones by half."""
    ledger, entry = opened()
    claim(ledger)
    ledger.delta(said(1, 0, 5, 6), 0.1)
    ledger.delta(said(1, 0, 5, 6), 0.1)
    ledger.delta(said(1, 1, 6, 7), 0.1)
    ledger.delta(said(0, 3, 99), 0.1)

    assert [5, 6, 7] == entry.committed
    assert [Piece(5, "5.", ""), Piece(6, "6.", ""), Piece(7, "7.", "")] == entry.pieces


def test_a_grammar_that_cannot_be_followed_any_longer() -> None:
    """What was said before it counts; then the client is told why there is no more, and the job is over."""
    ledger, entry = opened()
    claim(ledger)
    effects = ledger.delta(said(1, 0, 5, 6, 2, finish="failed"), 0.1)

    assert [Piece(5, "5.", ""), Piece(6, "6.", "")] == entry.pieces
    assert entry.failure is not None and Code.INVALID_REQUEST == entry.failure.code
    assert "after 2 tokens the grammar" in entry.failure.message
    assert [("L1", "+TERM")] == verbs(effects) and not ledger.entries


def test_a_gap_is_asked_for_and_not_taken() -> None:
    """What is missing before a token is asked of its engine, from the right index."""
    ledger, entry = opened()
    claim(ledger)
    ledger.delta(said(1, 0, 5), 1.0)
    effects = ledger.delta(said(1, 2, 7), 1.1)

    assert [5] == entry.committed
    assert [Send(ENGINE, "e1", m.Resend([m.Gap(REQUEST, 1, 1, "d1")]))] == effects


def test_a_holder_that_lost_the_job_is_told() -> None:
    """Tokens of an old epoch are answered with a release: a paused engine learns that it is too late."""
    ledger, _ = opened()
    claim(ledger)
    ledger.unanswered("e1", gone=True, now=2.0)
    claim(ledger, "e2", "L2", now=2.0)
    effects = ledger.delta(said(1, 0, 5), 2.1)

    assert Send(ENGINE, "e1", m.Release([m.Ref(REQUEST, 1)])) in effects


def test_an_engine_may_let_go_of_what_is_over() -> None:
    """It tells what it holds: an older epoch and what is not known are nobody's any more."""
    ledger, _ = opened()
    claim(ledger)
    ledger.yielded(m.Yielded("e1", [m.Ref(REQUEST, 1)]), 0.1)
    claim(ledger, "e2", "L2", now=0.2)
    now, old, unknown = m.Ref(REQUEST, 3), m.Ref(REQUEST, 1), m.Ref("gw-2", 5)

    assert m.Release([old, unknown]) == ledger.holding(m.Holding("e1", [old, now, unknown]))


def test_a_lost_engine_is_fenced_and_the_job_delivered_again() -> None:
    """Nobody listens at the engine: the next epoch, and a nak for its delivery; a successor goes on."""
    ledger, entry = opened()
    claim(ledger)
    ledger.delta(said(1, 0, 5, 6), 0.1)
    effects = ledger.unanswered("e1", gone=True, now=1.0)
    granted = claim(ledger, "e2", "L2", now=1.0)

    assert [("L1", "-NAK")] == verbs(effects)
    assert isinstance(granted, m.Granted)
    assert (3, [5, 6], "d1") == (granted.epoch, granted.committed, granted.detokenizer)
    assert "e2" == entry.engine


def test_silence_is_asked_about_before_it_counts() -> None:
    """A quiet engine is pinged; it counts as gone after three pings without an answer, not before."""
    ledger, entry = opened()
    claim(ledger)
    probes = [e for e in ledger.tick(0.2) if isinstance(e, Probe)]
    engines = []
    for now in (0.4, 0.6, 0.8):
        engines.append(entry.engine)
        ledger.unanswered("e1", gone=False, now=now)

    assert {"e1", "d1"} == {probe.to for probe in probes}
    assert (["e1"] * 3, "") == (engines, entry.engine)


def test_a_redelivery_of_what_runs_well_changes_nothing() -> None:
    """A late renewal has the job delivered again: the running engine stays, the newer lease is kept."""
    ledger, entry = opened()
    claim(ledger)
    ledger.delta(said(1, 0, 5), 1.0)
    reply, effects = ledger.claim(m.Claim(REQUEST, "e2", "L2", 0), 1.1)

    assert m.Gone(REQUEST) == reply
    assert ("e1", 1, "L2") == (entry.engine, entry.epoch, entry.lease)
    assert [("L2", "+WPI")] == verbs(effects)


def test_the_lease_is_renewed_while_there_is_progress() -> None:
    """An engine that does not move loses its lease, since only the owner renews."""
    ledger, _ = opened()
    claim(ledger)
    ledger.delta(said(1, 0, 5), 0.4)

    assert ("L1", "+WPI") in verbs(ledger.tick(0.5))
    assert ("L1", "+WPI") not in verbs(ledger.tick(1.5))


def test_a_finish_settles_the_job() -> None:
    """The last token acks the job, releases it everywhere, and leaves nothing behind."""
    ledger, entry = opened()
    claim(ledger)
    effects = ledger.delta(said(1, 0, 5, finish="stop"), 0.1)

    assert [("L1", "+ACK")] == verbs(effects)
    assert (True, None, {}) == (entry.ended, entry.failure, ledger.entries)


def test_a_suspect_runs_alone_and_is_given_up_in_the_end() -> None:
    """Two engines lost without a token make a suspect; three more, alone, end the job, with a dead letter."""
    ledger, entry = opened()
    replies: list[m.ClaimReply] = []
    for i in range(5):
        replies.append(claim(ledger, f"e{i}", f"L{i}", busy=3, now=float(i)))
        if isinstance(replies[-1], m.Wait):
            replies.append(claim(ledger, f"e{i}", f"L{i}", busy=0, now=float(i)))
        effects = ledger.unanswered(f"e{i}", gone=True, now=i + 0.5)
    kinds = [(type(r).__name__, getattr(r, "alone", None)) for r in replies]

    assert [("Granted", False)] * 2 + [("Wait", None), ("Granted", True)] * 3 == kinds
    assert entry.failure is not None and Code.JOB_CRASHED == entry.failure.code
    assert [5] == [e.letter.deaths for e in effects if isinstance(e, Bury)]


def suspected() -> tuple[Ledger, Entry, Entry]:
    """Two engines died of it; gw-2 is there too, and has done nothing."""
    ledger, entry = opened()
    other = Entry(structs.replace(entry.prompt, request="gw-2"), "sim", opened_at=0.0, deadline=100.0)
    ledger.open(other)
    for i in range(2):
        claim(ledger, f"e{i}", f"L{i}", now=float(i))
        ledger.unanswered(f"e{i}", gone=True, now=i + 0.5)
    return ledger, entry, other


def test_a_suspect_waits_for_what_its_engine_does_not_know_yet() -> None:
    """Its claim may be older than the grant of another: the engine said that nothing runs there."""
    ledger, _, _ = suspected()
    ledger.claim(m.Claim("gw-2", "e2", "M1", 1), 2.0)

    assert isinstance(claim(ledger, "e2", "L2", now=2.0), m.Wait)
    assert isinstance(claim(ledger, "e3", "L2", now=2.0), m.Granted)


def test_nothing_is_granted_beside_what_runs_alone() -> None:
    """The claim may be older than the grant of the suspect. The job is delivered again, to another."""
    ledger, entry, other = suspected()
    assert isinstance(claim(ledger, "e2", "L2", now=2.0), m.Granted)

    reply, effects = ledger.claim(m.Claim("gw-2", "e2", "M1", 0), 2.0)
    assert (m.Gone("gw-2"), ("M1", "-NAK")) == (reply, verbs(effects)[-1])
    assert isinstance(ledger.claim(m.Claim("gw-2", "e3", "M2", 0), 2.0)[0], m.Granted)
    ledger.delta(said(entry.epoch, 0, 5, finish="length", engine="e2"), 2.1)
    ledger.yielded(m.Yielded("e3", [other.ref]), 2.2)
    assert isinstance(ledger.claim(m.Claim("gw-2", "e2", "M3", 0), 2.3)[0], m.Granted)


def test_an_engine_that_leaves_before_it_hears_of_a_grant_is_no_strike() -> None:
    """It knows of no epoch, and gives back what it has claimed."""
    ledger, entry = opened()
    claim(ledger)
    effects = ledger.yielded(m.Yielded("e1", [m.Ref(REQUEST, 0)]), 0.1)
    ledger.unanswered("e1", gone=True, now=0.2)

    assert [("L1", "-NAK")] == verbs(effects)
    assert ("", 0) == (entry.engine, entry.blame.deaths)


def test_progress_clears_a_strike() -> None:
    """An engine lost after it had said something new is bad luck, not this job's doing."""
    ledger, entry = opened()
    for i in range(5):
        claim(ledger, f"e{i}", f"L{i}", now=float(i))
        ledger.delta(said(entry.epoch, i, 10 + i, engine=f"e{i}"), float(i))
        ledger.unanswered(f"e{i}", gone=True, now=i + 0.5)

    assert (0, 5, False) == (entry.blame.strikes, entry.blame.deaths, entry.ended)


@pytest.mark.parametrize("told", ["by claiming", "by its presence"])
def test_an_engine_that_speaks_again_has_not_died_of_a_request(told: str) -> None:
    """Behind a link that comes and goes an engine claims, is lost, and claims again; so do its fellows."""
    ledger, entry = opened()
    for i in range(20):
        engine = "e0" if told == "by claiming" else f"e{i}"
        claim(ledger, engine, f"L{i}", now=float(i))
        ledger.unanswered(engine, gone=True, now=i + 0.5)
        if told == "by its presence":
            ledger.here(m.Here("engine", engine, 1, "ready", kind="k"), i + 0.6)

    assert not entry.ended
    assert entry.blame.strikes <= 1 and entry.blame.deaths <= 1


@pytest.mark.parametrize(("heard_at", "strikes"), [(0.9, 0), (0.1, 1)])
def test_who_still_says_that_it_is_there_is_no_strike(heard_at: float, strikes: int) -> None:
    """It answers no ping, as on a link that carries one way; one that a request has stopped says nothing."""
    ledger, entry = opened()
    claim(ledger, "e0", "L0", now=0.0)
    ledger.here(m.Here("engine", "e0", 1, "ready", kind="k"), heard_at)
    for n in range(3):
        ledger.unanswered("e0", gone=False, now=0.6 + 0.2 * n)

    assert (strikes, "") == (entry.blame.strikes, entry.engine)


def prefilled(epoch: int, engine: str) -> m.Hops:
    """What an engine tells with its first token."""
    return m.Hops("engine", engine, REQUEST, [m.Hop("prefill", 0.0, 0.0, epoch)])


@pytest.mark.parametrize("told", ["with its first token", "when asked"])
def test_tokens_that_a_detokenizer_keeps_to_itself_are_no_strike(told: str) -> None:
    """Engine after engine is lost, and the paused detokenizer lets none of their tokens through: the engines
    have told that there were some, so the request did not end them."""
    ledger, entry = opened()
    for i in range(5):
        claim(ledger, f"e{i}", f"L{i}", now=float(i))
        if told == "when asked":
            ledger.pong(m.Pong(f"e{i}", i, [m.Held(REQUEST, entry.epoch, 4)]), m.Ping([entry.ref]), i + 0.3)
        else:
            ledger.hops(prefilled(entry.epoch, f"e{i}"))
        ledger.unanswered(f"e{i}", gone=True, now=i + 0.5)

    assert (0, 5, []) == (entry.blame.strikes, entry.blame.deaths, entry.committed)
    assert not entry.ended


def test_what_an_earlier_engine_made_does_not_speak_for_a_request() -> None:
    """Word of a lost engine's token that comes late is no word of its successor's."""
    ledger, entry = opened()
    for i in range(5):
        claim(ledger, f"e{i}", f"L{i}", now=float(i))
        ledger.hops(prefilled(entry.epoch - 2, f"e{i}"))
        ledger.hops(prefilled(entry.epoch, f"e{i - 1}"))
        ledger.unanswered(f"e{i}", gone=True, now=i + 0.5)

    assert entry.failure is not None and Code.JOB_CRASHED == entry.failure.code


@pytest.mark.parametrize(("step", "asked_after"), [(0.01, 0.15), (0.05, 0.15), (0.2, 0.3), (2.0, 0.5)])
def test_slow_steps_are_no_silence(step: float, asked_after: float) -> None:
    """An engine is asked when it is quiet for longer than its usual step, and never after much longer; a
    stall just before changes nothing."""
    ledger, _ = opened()
    claim(ledger)
    now = 0.0
    for index in range(8):
        now += 3.0 if index == 7 else step
        ledger.delta(said(1, index, 5), now)

    def asks(quiet: float) -> bool:
        return any(isinstance(effect, Probe) for effect in ledger.tick(now + quiet))

    assert not asks(asked_after - 0.01)
    assert asks(asked_after + 0.01)


def test_a_cancelled_request_leaves_the_queue_or_its_engine() -> None:
    """Queued, its message is deleted; running, it is ended and its engine told. Twice is once."""
    queued, _ = opened()
    running, _ = opened()
    claim(running)
    effects = running.cancel(REQUEST)

    assert [Delete(7)] == queued.cancel(REQUEST)
    assert [("L1", "+TERM")] == verbs(effects)
    assert Send(ENGINE, "e1", m.Release([m.Ref(REQUEST, 1)])) in effects
    assert [] == running.cancel(REQUEST)


def test_a_request_that_was_cancelled_before_it_was_queued() -> None:
    """Its answer from the tokenizer comes too late, and the job goes."""
    ledger, _ = opened()
    ledger.cancel(REQUEST)

    assert [Delete(9)] == ledger.admitted(REQUEST, 9, 3, 0.1)


def test_time_runs_out_in_the_queue_too() -> None:
    """An expired job is never prefilled: its claim is refused, and its client gets the typed failure."""
    ledger, entry = opened(deadline=5.0)
    reply = claim(ledger, now=5.1)

    assert m.Gone(REQUEST) == reply
    assert entry.failure is not None and Code.DEADLINE_EXCEEDED == entry.failure.code


def test_an_engine_that_forgot_is_replaced() -> None:
    """It answers, but no longer holds the request (it fenced itself): the job is delivered again."""
    ledger, entry = opened()
    claim(ledger)
    effects = ledger.pong(m.Pong("e1", 5, []), m.Ping([m.Ref(REQUEST, 1)]), 0.3)

    assert [("L1", "-NAK")] == verbs(effects)
    assert "" == entry.engine


def test_tokens_lost_on_the_way_are_asked_for_then_the_detokenizer_is_changed() -> None:
    """Its engine has said more than arrived: twice it is asked again, then another detokenizer gets it."""
    ledger, entry = opened()
    ledger.here(m.Here("detokenizer", "d2", 1, "ready"), 0.0)
    claim(ledger)
    first = entry.detokenizer
    asked: list[Effect] = []
    for i in range(6):
        now = 0.3 + i / 10
        asked += ledger.pong(m.Pong("e1", i, [m.Held(REQUEST, 1, 4)]), m.Ping([entry.ref]), now)
    resends = [e.message.gaps[0] for e in asked if isinstance(e, Send) and isinstance(e.message, m.Resend)]

    assert [first, first, entry.detokenizer] == [gap.detokenizer for gap in resends]
    assert first != entry.detokenizer


def test_a_job_that_is_not_stored_any_more_is_made_again() -> None:
    """Queued and unclaimed for a while it is looked for, and its prompt sent with the next attempt."""
    ledger, _ = opened()
    looked = ledger.tick(3.0)
    (again,) = ledger.missing(REQUEST)

    assert [Check(REQUEST, 7)] == looked
    assert isinstance(again, Resubmit) and 2 == again.prompt.attempt


def kin(*engines: tuple[str, str, int]) -> tuple[Ledger, Entry]:
    """A request that an engine of kind `a` gave back after two tokens; these engines are there: name,
    kind, load."""
    ledger, entry = opened()
    ledger.claim(m.Claim(REQUEST, "e1", "L1", 0, "a"), 0.0)
    ledger.delta(said(1, 0, 5, 6), 0.1)
    ledger.yielded(m.Yielded("e1", [entry.ref]), 1.0)
    for id, kind, load in engines:
        ledger.here(m.Here("engine", id, 1, "ready", load, 4, "sim", kind=kind), 1.0)
    return ledger, entry


def test_a_text_goes_on_at_an_engine_of_its_kind() -> None:
    """Another one is refused while that could take it, and the job is offered on."""
    ledger, _ = kin(("e2", "b", 0), ("e3", "a", 0))
    refused, effects = ledger.claim(m.Claim(REQUEST, "e2", "L2", 0, "b"), 1.1)
    granted, _ = ledger.claim(m.Claim(REQUEST, "e3", "L3", 0, "a"), 1.2)

    assert isinstance(refused, m.Gone) and ("L2", "-NAK") == verbs(effects)[-1]
    assert isinstance(granted, m.Granted) and not granted.strange
    assert (1, 0) == (ledger.counts["kept_for_its_kind"], ledger.counts["resumed_on_another_kind"])


@pytest.mark.parametrize(
    "engines",
    [(), (("e3", "b", 0),), (("e3", "a", 4),)],
    ids=["nobody", "none of its kind", "none that is free"],
)
def test_a_text_goes_on_at_another_kind_if_it_must(engines: tuple[tuple[str, str, int], ...]) -> None:
    """At once, and it is told."""
    ledger, _ = kin(*engines)
    granted, _ = ledger.claim(m.Claim(REQUEST, "e2", "L2", 0, "b"), 1.1)

    assert isinstance(granted, m.Granted) and granted.strange
    assert 1 == ledger.counts["resumed_on_another_kind"]


def test_the_right_kind_is_not_waited_for_for_long() -> None:
    """It may be there, and not come."""
    ledger, _ = kin(("e3", "a", 0))
    replies = [ledger.claim(m.Claim(REQUEST, "e2", "L2", 0, "b"), 1.1 + 0.05 * i)[0] for i in range(20)]
    waits = next(i for i, reply in enumerate(replies) if isinstance(reply, m.Granted))

    assert 0 < waits * 0.05 <= 0.5


def test_before_the_first_token_any_kind_will_do() -> None:
    """There is nothing yet that could go on differently."""
    ledger, entry = opened()
    ledger.here(m.Here("engine", "e3", 1, "ready", 0, 4, "sim", kind="a"), 0.0)
    ledger.claim(m.Claim(REQUEST, "e1", "L1", 0, "a"), 0.0)
    ledger.yielded(m.Yielded("e1", [entry.ref]), 0.1)
    granted, _ = ledger.claim(m.Claim(REQUEST, "e2", "L2", 0, "b"), 0.2)

    assert isinstance(granted, m.Granted) and not granted.strange


def test_a_vector_has_no_detokenizer() -> None:
    """None is told of it, whichever come and go; asked for again, it is asked of its engine alone; and only
    the current epoch's counts."""
    ledger, entry = opened()
    entry.vector = True
    reply, effects = ledger.claim(m.Claim(REQUEST, "e1", "L1", 0), 0.0)
    ping = m.Ping([entry.ref])
    for now in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        effects += ledger.here(m.Here("detokenizer", f"d{now}", 1, "ready"), now)
        effects += ledger.pong(m.Pong("e1", 1, [m.Held(REQUEST, 1, 1)]), ping, now)
    sent = [effect for effect in effects if isinstance(effect, Send)]

    assert isinstance(reply, m.Granted) and reply.detokenizer == ""
    assert [Send(ENGINE, "e1", m.Resend([m.Gap(REQUEST, 1, 0, "")]))] * 3 == sent

    for epoch, vector in ((0, b"old!"), (1, b"1234")):
        told = m.Said(REQUEST, epoch, 0, [m.VECTOR], [""], "stop", vector=vector)
        effects = ledger.delta(m.Delta("e1", "", [told]), 0.8)

    assert [Piece(m.VECTOR, "", "stop", vector=b"1234")] == entry.pieces
    assert ("L1", "+ACK") in verbs(effects) and entry.said == 0
