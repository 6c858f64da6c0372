"""What a request is blamed for by the ledger, what runs alone then, and what is given up."""

import pytest
from msgspec import structs

from millrace import messages as m
from millrace.errors import Code
from services.gateway.owner.effects import Bury
from services.gateway.owner.entry import Entry
from services.gateway.owner.ledger import Ledger
from tests.kit.owned import REQUEST, claim, owned, said, verbs


def test_a_suspect_runs_alone_and_is_given_up_in_the_end() -> None:
    """Two engines lost without a token make a suspect; three more, alone, end the job, with a dead letter."""
    ledger, entry = owned()
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
    ledger, entry = owned()
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
    ledger, entry = owned()
    claim(ledger)
    effects = ledger.yielded(m.Yielded("e1", [m.Ref(REQUEST, 0)]), 0.1)
    ledger.unanswered("e1", gone=True, now=0.2)

    assert [("L1", "-NAK")] == verbs(effects)
    assert ("", 0) == (entry.engine, entry.blame.deaths)


def test_progress_clears_a_strike() -> None:
    """An engine lost after it had said something new is bad luck, not this job's doing."""
    ledger, entry = owned()
    for i in range(5):
        claim(ledger, f"e{i}", f"L{i}", now=float(i))
        ledger.delta(said(entry.epoch, i, 10 + i, engine=f"e{i}"), float(i))
        ledger.unanswered(f"e{i}", gone=True, now=i + 0.5)

    assert (0, 5, False) == (entry.blame.strikes, entry.blame.deaths, entry.ended)


@pytest.mark.parametrize("told", ["by claiming", "by its presence"])
def test_an_engine_that_speaks_again_has_not_died_of_a_request(told: str) -> None:
    """Behind a link that comes and goes an engine claims, is lost, and claims again; so do its fellows."""
    ledger, entry = owned()
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
    ledger, entry = owned()
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
    ledger, entry = owned()
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
    ledger, entry = owned()
    for i in range(5):
        claim(ledger, f"e{i}", f"L{i}", now=float(i))
        ledger.hops(prefilled(entry.epoch - 2, f"e{i}"))
        ledger.hops(prefilled(entry.epoch, f"e{i - 1}"))
        ledger.unanswered(f"e{i}", gone=True, now=i + 0.5)

    assert entry.failure is not None and Code.JOB_CRASHED == entry.failure.code
