"""The ledger's rules, one by one. The seeded worlds of test_simulation.py try them together."""

import pytest

from millrace import messages as m
from millrace.errors import Code
from millrace.subjects import ENGINE, Send
from services.gateway.desk import Piece
from services.gateway.owner.effects import Check, Delete, Effect, Probe, Resubmit
from tests.kit.owned import REQUEST, claim, owned, said, verbs


def test_tokens_count_from_the_current_epoch_and_the_next_index() -> None:
    """Repeated tokens are taken once, tokens of a lost epoch not at all, and half-known ones by half."""
    ledger, entry = owned()
    claim(ledger)
    ledger.delta(said(1, 0, 5, 6), 0.1)
    ledger.delta(said(1, 0, 5, 6), 0.1)
    ledger.delta(said(1, 1, 6, 7), 0.1)
    ledger.delta(said(0, 3, 99), 0.1)

    assert [5, 6, 7] == entry.committed
    assert [Piece(5, "5.", ""), Piece(6, "6.", ""), Piece(7, "7.", "")] == entry.pieces


def test_a_grammar_that_cannot_be_followed_any_longer() -> None:
    """What was said before it counts; then the client is told why there is no more, and the job is over."""
    ledger, entry = owned()
    claim(ledger)
    effects = ledger.delta(said(1, 0, 5, 6, 2, finish="failed"), 0.1)

    assert [Piece(5, "5.", ""), Piece(6, "6.", "")] == entry.pieces
    assert entry.failure is not None and Code.INVALID_REQUEST == entry.failure.code
    assert "after 2 tokens the grammar" in entry.failure.message
    assert [("L1", "+TERM")] == verbs(effects) and not ledger.entries


def test_a_gap_is_asked_for_and_not_taken() -> None:
    """What is missing before a token is asked of its engine, from the right index."""
    ledger, entry = owned()
    claim(ledger)
    ledger.delta(said(1, 0, 5), 1.0)
    effects = ledger.delta(said(1, 2, 7), 1.1)

    assert [5] == entry.committed
    assert [Send(ENGINE, "e1", m.Resend([m.Gap(REQUEST, 1, 1, "d1")]))] == effects


def test_a_holder_that_lost_the_job_is_told() -> None:
    """Tokens of an old epoch are answered with a release: a paused engine learns that it is too late."""
    ledger, _ = owned()
    claim(ledger)
    ledger.unanswered("e1", gone=True, now=2.0)
    claim(ledger, "e2", "L2", now=2.0)
    effects = ledger.delta(said(1, 0, 5), 2.1)

    assert Send(ENGINE, "e1", m.Release([m.Ref(REQUEST, 1)])) in effects


def test_a_holder_that_may_take_it_again_is_told_so() -> None:
    """As long as no other has it, what it says too late is no end of the job: an engine that takes nothing
    new takes this back, if it still knows of it."""
    ledger, _ = owned()
    claim(ledger)
    ledger.unanswered("e1", gone=True, now=2.0)
    old = m.Ref(REQUEST, 1)
    late = [
        *ledger.delta(said(1, 0, 5), 2.1),
        *ledger.recall(m.Recall(REQUEST, 1, "e1"))[1],
    ]

    assert [Send(ENGINE, "e1", m.Release([old], again=True))] * 2 == late
    assert m.Release([]) == ledger.holding(m.Holding("e1", [old]))

    claim(ledger, "e2", "L2", now=2.2)

    assert [Send(ENGINE, "e1", m.Release([old]))] == ledger.recall(m.Recall(REQUEST, 1, "e1"))[1]
    assert m.Release([old]) == ledger.holding(m.Holding("e1", [old]))


def test_an_engine_may_let_go_of_what_is_over() -> None:
    """It tells what it holds: an older epoch and what is not known are nobody's any more."""
    ledger, _ = owned()
    claim(ledger)
    ledger.yielded(m.Yielded("e1", [m.Ref(REQUEST, 1)]), 0.1)
    claim(ledger, "e2", "L2", now=0.2)
    now, old, unknown = m.Ref(REQUEST, 3), m.Ref(REQUEST, 1), m.Ref("gw-2", 5)

    assert m.Release([old, unknown]) == ledger.holding(m.Holding("e1", [old, now, unknown]))


def test_a_lost_engine_is_fenced_and_the_job_delivered_again() -> None:
    """Nobody listens at the engine: the next epoch, and a nak for its delivery; a successor goes on."""
    ledger, entry = owned()
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
    ledger, entry = owned()
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
    ledger, entry = owned()
    claim(ledger)
    ledger.delta(said(1, 0, 5), 1.0)
    reply, effects = ledger.claim(m.Claim(REQUEST, "e2", "L2", 0), 1.1)

    assert m.Gone(REQUEST) == reply
    assert ("e1", 1, "L2") == (entry.engine, entry.epoch, entry.lease)
    assert [("L2", "+WPI")] == verbs(effects)


def test_the_lease_is_renewed_while_there_is_progress() -> None:
    """An engine that does not move loses its lease, since only the owner renews."""
    ledger, _ = owned()
    claim(ledger)
    ledger.delta(said(1, 0, 5), 0.4)

    assert ("L1", "+WPI") in verbs(ledger.tick(0.5))
    assert ("L1", "+WPI") not in verbs(ledger.tick(1.5))


def test_a_finish_settles_the_job() -> None:
    """The last token acks the job, releases it everywhere, and leaves nothing behind."""
    ledger, entry = owned()
    claim(ledger)
    effects = ledger.delta(said(1, 0, 5, finish="stop"), 0.1)

    assert [("L1", "+ACK")] == verbs(effects)
    assert (True, None, {}) == (entry.ended, entry.failure, ledger.entries)


@pytest.mark.parametrize(("step", "asked_after"), [(0.01, 0.15), (0.05, 0.15), (0.2, 0.3), (2.0, 0.5)])
def test_slow_steps_are_no_silence(step: float, asked_after: float) -> None:
    """An engine is asked when it is quiet for longer than its usual step, and never after much longer; a
    stall just before changes nothing."""
    ledger, _ = owned()
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
    queued, _ = owned()
    running, _ = owned()
    claim(running)
    effects = running.cancel(REQUEST)

    assert [Delete(7)] == queued.cancel(REQUEST)
    assert [("L1", "+TERM")] == verbs(effects)
    assert Send(ENGINE, "e1", m.Release([m.Ref(REQUEST, 1)])) in effects
    assert [] == running.cancel(REQUEST)


def test_a_request_that_was_cancelled_before_it_was_queued() -> None:
    """Its answer from the tokenizer comes too late, and the job goes."""
    ledger, _ = owned()
    ledger.cancel(REQUEST)

    assert [Delete(9)] == ledger.admitted(REQUEST, 9, 3, 0.1)


def test_time_runs_out_in_the_queue_too() -> None:
    """An expired job is never prefilled: its claim is refused, and its client gets the typed failure."""
    ledger, entry = owned(deadline=5.0)
    reply = claim(ledger, now=5.1)

    assert m.Gone(REQUEST) == reply
    assert entry.failure is not None and Code.DEADLINE_EXCEEDED == entry.failure.code


def test_an_engine_that_forgot_is_replaced() -> None:
    """It answers, but no longer holds the request (it fenced itself): the job is delivered again."""
    ledger, entry = owned()
    claim(ledger)
    effects = ledger.pong(m.Pong("e1", 5, []), m.Ping([m.Ref(REQUEST, 1)]), 0.3)

    assert [("L1", "-NAK")] == verbs(effects)
    assert "" == entry.engine


def test_tokens_lost_on_the_way_are_asked_for_then_the_detokenizer_is_changed() -> None:
    """Its engine has said more than arrived: twice it is asked again, then another detokenizer gets it."""
    ledger, entry = owned()
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
    ledger, _ = owned()
    looked = ledger.tick(3.0)
    (again,) = ledger.missing(REQUEST)

    assert [Check(REQUEST, 7)] == looked
    assert isinstance(again, Resubmit) and 2 == again.prompt.attempt


def test_a_vector_has_no_detokenizer() -> None:
    """None is told of it, whichever come and go; asked for again, it is asked of its engine alone; and only
    the current epoch's counts."""
    ledger, entry = owned()
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
