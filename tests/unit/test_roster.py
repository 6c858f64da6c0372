"""What an engine does about jobs, claims and owners."""

from millrace import messages as m
from millrace.subjects import DETOKENIZER, GATEWAY, ORPHANS, Send
from services.engine.jobs.roster import ABSENT, Ask, Effect, Roster, Tell
from services.engine.steps.scheduler import Output
from services.engine.steps.sequence import Sequence


class RecordingBoard:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def add(self, sequence: Sequence) -> None:
        self.calls.append(("add", sequence.request))

    def grant(self, request: str, epoch: int, committed: list[int]) -> None:
        self.calls.append(("grant", request, epoch, committed))

    def drop(self, request: str) -> None:
        self.calls.append(("drop", request))


def job(request: str = "gw-1") -> m.Job:
    return m.Job(request, 1, b"\1\0\0\0\2\0\0\0", m.Sampling(1), 8)


def roster(slots: int = 4) -> tuple[Roster, RecordingBoard]:
    board = RecordingBoard()
    return Roster("e1", slots, board, 0.0), board


def granted(
    request: str = "gw-1", epoch: int = 1, committed: list[int] | None = None, **more: bool
) -> m.Granted:
    return m.Granted(request, epoch, committed or [], "d1", 60_000, **more)


def frames(effects: list[Effect]) -> list[Effect]:
    """What goes out but for what is told of times."""
    return [e for e in effects if not (isinstance(e, Send) and isinstance(e.message, m.Hops))]


def test_a_first_delivery_starts_before_the_owner_answers() -> None:
    """The claim costs no time to the first token."""
    made, board = roster()
    effects = made.job(job(), "L1", 1, 0.0)

    assert [Ask("gw", m.Claim("gw-1", "e1", "L1", 0))] == effects
    assert [("add", "gw-1")] == board.calls


def test_a_redelivered_job_is_not_touched_before_the_owner_answers() -> None:
    """It may have crashed the engine that had it before."""
    made, board = roster()
    (ask,) = made.job(job(), "L1", 2, 0.0)
    before = list(board.calls)
    assert isinstance(ask, Ask)
    made.replied(ask.claim, granted(epoch=5, committed=[9]), 0.0)

    assert [] == before
    assert [("add", "gw-1"), ("grant", "gw-1", 5, [9])] == board.calls


def test_frames_go_on_from_what_was_committed() -> None:
    """A resumed request's first token has the index after the committed ones; one frame a detokenizer."""
    made, _ = roster()
    for request in ("gw-1", "gw-2"):
        (ask,) = made.job(job(request), "L", 1, 0.0)
        assert isinstance(ask, Ask)
        made.replied(ask.claim, granted(request, 3, [7, 8]), 0.0)
    effects = made.stepped([Output("gw-1", 3, 2, 50, ""), Output("gw-2", 3, 2, 60, "stop")], 0.1)

    runs = [m.Run("gw-1", 3, 2, [50]), m.Run("gw-2", 3, 2, [60], "stop")]
    assert [Send(DETOKENIZER, "d1", m.Frame("e1", runs))] == frames(effects)


def test_a_finished_request_is_kept_until_it_is_released() -> None:
    """Its slot is free at once, its tokens can still be sent again, and a release ends that."""
    made, _ = roster(slots=1)
    (ask,) = made.job(job(), "L", 1, 0.0)
    assert isinstance(ask, Ask)
    made.replied(ask.claim, granted(), 0.0)
    full = made.room
    made.stepped([Output("gw-1", 1, 0, 50, "stop")], 0.1)
    again = made.resend(m.Resend([m.Gap("gw-1", 1, 0, "d2")]))
    made.release(m.Release([m.Ref("gw-1", 1)]), 0.2)

    assert (0, 1) == (full, made.room)
    assert [Send(DETOKENIZER, "d2", m.Frame("e1", [m.Run("gw-1", 1, 0, [50], "stop")]))] == again
    assert [] == made.resend(m.Resend([m.Gap("gw-1", 1, 0, "d2")]))


def test_a_release_of_an_older_epoch_is_too_late() -> None:
    """The same engine may have been granted the job again."""
    made, board = roster()
    (ask,) = made.job(job(), "L", 1, 0.0)
    assert isinstance(ask, Ask)
    made.replied(ask.claim, granted(epoch=4), 0.0)
    made.release(m.Release([m.Ref("gw-1", 3)]), 0.2)

    assert ("drop", "gw-1") not in board.calls


def test_each_owner_is_told_what_is_held_for_it() -> None:
    """Once a second, of what was granted, in one message; nothing is said where nothing is held."""
    engine, _ = roster()
    for i, request in enumerate(("gw-1", "gw-2", "other-1", "gw-3")):
        engine.job(job(request), f"L{i}", 1, 0.0)
    for request in ("gw-1", "gw-2", "other-1"):
        engine.replied(m.Claim(request, "e1", "L", 0), granted(request, epoch=4), 0.0)
    refs = {
        owner: [m.Ref(r, 4) for r in of] for owner, of in (("gw", ["gw-1", "gw-2"]), ("other", ["other-1"]))
    }

    tells = [Tell(owner, m.Holding("e1", of)) for owner, of in refs.items()]
    assert [[], tells, [], tells] == [engine.tick(now) for now in (0.9, 1.0, 1.5, 2.0)]
    engine.told("gw", m.Release(refs["gw"]), 2.1)
    assert tells[1:] == engine.tick(3.0)
    engine.told("other", m.Release(refs["other"]), 3.1)
    assert [] == engine.tick(4.0)


def test_what_was_taken_away_is_known_until_it_is_back_or_over() -> None:
    """Taken by its owner or fenced by a pause, asked for in vain or granted in vain: an engine that takes
    nothing new has to know it. Its owner is asked about it, and says when it is over."""
    engine, _ = roster()
    claims = {request: m.Claim(request, "e1", "L", 0) for request in ("gw-1", "gw-2", "gw-3")}

    def runs(request: str, epoch: int, now: float) -> None:
        engine.job(job(request), "L", 2, now)
        engine.replied(claims[request], granted(request, epoch), now)

    for request in ("gw-1", "gw-2", "gw-3"):
        runs(request, 1, 0.0)
    engine.release(m.Release([m.Ref("gw-3", 1)]), 0.1)
    engine.release(m.Release([m.Ref("gw-1", 1)], again=True), 0.1)
    assert ["gw-1"] == list(engine.taken)
    told = engine.tick(5.0)  # gw-2 was fenced
    assert ["gw-1", "gw-2"] == list(engine.taken)
    assert [Tell("gw", m.Holding("e1", [m.Ref("gw-1", 1), m.Ref("gw-2", 1)]))] == told

    engine.told("gw", m.Release([m.Ref("gw-2", 1)]), 5.1)
    runs("gw-1", 2, 5.1)
    assert [] == list(engine.taken)
    engine.release(m.Release([m.Ref("gw-1", 2)], again=True), 5.2)
    engine.job(job("gw-1"), "L", 3, 5.2)
    engine.tick(9.0)  # while it was asked for
    assert ["gw-1"] == list(engine.taken)
    (handed_back,) = engine.replied(claims["gw-1"], granted("gw-1", 3), 9.0)
    engine.told("gw", m.Release([m.Ref("gw-1", 2)]), 9.1)  # said before that
    assert isinstance(handed_back, Send) and ["gw-1"] == list(engine.taken)

    for _ in range(ABSENT):
        engine.untold("gw", gone=True)
    assert [] == list(engine.taken)


def test_what_an_owner_held_that_is_gone_is_let_go() -> None:
    """Nobody listened for some time: what was granted, and what waits for a grant. An answer begins anew."""
    engine, board = roster()
    for i, request in enumerate(("gw-1", "gw-2", "other-1")):
        engine.job(job(request), f"L{i}", 1, 0.0)
    engine.replied(m.Claim("gw-1", "e1", "L0", 0), granted("gw-1"), 0.0)
    for _ in range(2):
        for _ in range(4):
            engine.untold("gw", gone=True)
        engine.untold("gw", gone=False)
    for _ in range(4):
        engine.untold("gw", gone=True)
    engine.told("gw", m.Release([]), 1.0)
    assert 3 == len(engine.holds)

    for _ in range(5):
        engine.untold("gw", gone=True)
    assert ["other-1"] == list(engine.holds)
    assert [("drop", "gw-1"), ("drop", "gw-2")] == [call for call in board.calls if call[0] == "drop"]


def test_a_suspect_waits_until_nothing_runs_beside_it() -> None:
    """Told to wait, the engine takes no more, claims again, and gives the suspect the batch for itself."""
    made, board = roster()
    (first,) = made.job(job("gw-1"), "L1", 1, 0.0)
    assert isinstance(first, Ask)
    made.replied(first.claim, granted("gw-1"), 0.0)
    (ask,) = made.job(job("gw-2"), "L2", 3, 0.0)
    assert isinstance(ask, Ask)
    made.replied(ask.claim, m.Wait("gw-2"), 0.0)
    waiting = (ask.claim.busy, made.room, made.job(job("gw-3"), "L3", 1, 0.0))
    made.stepped([Output("gw-1", 1, 0, 5, "stop")], 0.1)
    (again,) = made.tick(0.3)
    assert isinstance(again, Ask)
    made.replied(again.claim, granted("gw-2", alone=True), 0.3)

    assert (1, 0, []) == waiting
    assert (0, 0) == (again.claim.busy, made.room)
    assert [("add", "gw-2"), ("grant", "gw-2", 1, [])] == board.calls[-2:]


def test_an_engine_that_was_stopped_lets_everything_go() -> None:
    """Its leases went elsewhere meanwhile; computing on would be waste."""
    made, board = roster()
    (ask,) = made.job(job(), "L", 1, 0.0)
    assert isinstance(ask, Ask)
    made.replied(ask.claim, granted(), 0.0)
    made.tick(0.05)
    made.tick(5.0)

    assert ("drop", "gw-1") == board.calls[-1]
    assert (0, 1) == (made.load, made.counts["fenced"])


def test_a_job_without_an_owner_is_an_orphan() -> None:
    """Nobody listens at its gateway: the other gateways may end it."""
    made, board = roster()
    (ask,) = made.job(job(), "L1", 1, 0.0)
    assert isinstance(ask, Ask)

    assert [Send(ORPHANS, "", m.Orphan("gw-1", "L1"))] == made.unanswered(ask.claim, gone=True)
    assert ("drop", "gw-1") == board.calls[-1]


def test_leaving_hands_over_what_runs_and_what_is_granted_too_late() -> None:
    """Every owner is told which requests to have continued elsewhere."""
    made, _ = roster()
    asks = [made.job(job(f"gw-{i}"), f"L{i}", 1, 0.0)[0] for i in (1, 2)]
    assert isinstance(asks[0], Ask) and isinstance(asks[1], Ask)
    made.replied(asks[0].claim, granted("gw-1", 3), 0.0)
    now = made.leave(0.2)
    later = made.replied(asks[1].claim, granted("gw-2", 1), 0.1)

    assert [Send(GATEWAY, "gw", m.Yielded("e1", [m.Ref("gw-1", 3), m.Ref("gw-2", 0)]))] == now
    assert [Send(GATEWAY, "gw", m.Yielded("e1", [m.Ref("gw-2", 1)]))] == later


def test_a_vector_goes_to_the_owner_until_it_is_released() -> None:
    """Past every detokenizer, which has no part in it; and again, the same, if it got lost."""
    made, _ = roster()
    (ask,) = made.job(job(), "L1", 1, 0.0)
    assert isinstance(ask, Ask)
    made.replied(ask.claim, m.Granted("gw-1", 3, [], "", 60_000), 0.0)
    first = made.stepped([Output("gw-1", 3, 0, m.VECTOR, "stop", vector=b"1234")], 0.1)
    again = m.Resend([m.Gap("gw-1", 3, 0, "")])
    told = [m.Said("gw-1", 3, 0, [m.VECTOR], [""], "stop", vector=b"1234")]
    expected: list[Effect] = [Send(GATEWAY, "gw", m.Delta("e1", "", told))]

    assert expected == frames(first) == frames(made.resend(again))
    assert [m.Held("gw-1", 3, 1)] == made.ping(m.Ping([m.Ref("gw-1", 3)]), 1).held

    made.release(m.Release([m.Ref("gw-1", 3)]), 0.2)

    assert [] == frames(made.resend(again))
