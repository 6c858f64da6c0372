"""The jobs this engine holds: claimed, granted, sent, let go. A pure state machine.

Whether a job may run is the owner's word alone. What was generated is kept until the owner lets go of
it, since any frame may have to be sent again.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np

from millrace import messages as m
from millrace.subjects import ACK_WAIT_S, DETOKENIZER, GATEWAY, ORPHANS, Role, Send
from millrace.telemetry import is_sampled
from services.engine.jobs.taken import Taken
from services.engine.loop import Noted
from services.engine.steps.scheduler import Output
from services.engine.steps.sequence import Sequence

RECLAIM_S = 0.2
"""How often a suspect's claim is repeated while it waits to run alone; well inside the lease."""

HOLDING_S = 1.0
"""How often each owner is told what is held for it: one that did not hear a Release computes for nobody."""

ABSENT = 5
"""So many times in a row nobody listened: the owner is gone. One that lost its connection is back before."""

FORGET_S = 60.0
"""A finished request whose Release never came; its owner has long settled it, or is gone."""


class Board(Protocol):
    """Where sequences run: the step loop, or the scheduler itself."""

    def add(self, sequence: Sequence) -> None: ...

    def grant(self, request: str, epoch: int, committed: list[int]) -> None: ...

    def drop(self, request: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the owner; feed its reply to `replied`, its absence to `unanswered`."""

    owner: str
    claim: m.Claim


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the owner; feed its answer to `told`, its absence to `untold`."""

    owner: str
    holding: m.Holding


Effect = Send | Ask | Tell


class Phase(Enum):
    CLAIMING = "claiming"
    WAITING = "waiting"  # a suspect, until it can run alone
    RUNNING = "running"
    FINISHED = "finished"  # its slot is free; its tokens are kept


@dataclass(slots=True)
class Hold:
    job: m.Job
    lease: str
    phase: Phase
    at: float  # when it entered the phase, or claimed last
    on_board: bool = False
    epoch: int = 0
    ids: list[int] = field(default_factory=list)  # of the answer: committed when granted, and generated since
    odds: dict[int, m.Odds] = field(default_factory=dict)  # by index, of what was generated here
    vector: bytes = b""  # in place of a text: what stands in `ids` is told with it
    finish: m.Finish = ""
    cached: int = 0  # tokens of the prompt that did not have to be computed
    detokenizer: str = ""
    deadline: float = 0.0
    alone: bool = False
    # for its trace
    traceparent: str = ""
    pulled_at: float = 0.0
    added_at: float = 0.0  # to the board
    granted_at: float = 0.0
    first_at: float = 0.0  # its first token here; 0: not yet
    resumed: int = 0  # committed tokens it began with
    sequence: Sequence | None = None


class Roster:
    def __init__(
        self,
        id: str,
        slots: int,
        board: Board,
        now: float,
        wall: Callable[[float], float] = lambda at: at,
        kind: str = "",
    ):
        """`wall` makes unix seconds of its times, for traces. Engines of one `kind` compute the same bits."""
        self.id = id
        self.kind = kind
        self._wall = wall
        self.holds: dict[str, Hold] = {}
        self.counts: Counter[str] = Counter()
        self.taken = Taken()
        self.leaving = False
        self._slots = slots
        self._board = board
        self._absent: Counter[str] = Counter()  # how often nobody listened, by owner
        self._ticked = self._told_at = now

    # -- how much

    @property
    def load(self) -> int:
        return sum(1 for h in self.holds.values() if h.phase is not Phase.FINISHED)

    @property
    def closed(self) -> bool:
        """No further job is taken: on leaving, and while a suspect has the engine for itself or waits to."""
        return self.leaving or any(h.phase is Phase.WAITING or h.alone for h in self.holds.values())

    @property
    def room(self) -> int:
        """Jobs to pull."""
        return 0 if self.closed else self._slots - self.load

    # -- a job comes in

    def job(self, job: m.Job, lease: str, delivery: int, now: float, traceparent: str = "") -> list[Effect]:
        if self.closed:
            return []  # not claimed: it is delivered again, to somebody, after ACK_WAIT
        known = self.holds.get(job.request)
        if known is None or not known.epoch:
            if known is not None:
                self._drop(job.request)
            # It claims beside prefill, at no cost in time. One that was delivered before may have crashed an
            # engine: that one is not touched until the owner says so, nor is anything started beside it.
            careful = delivery > 1 or any(
                h.phase is Phase.CLAIMING and not h.on_board for h in self.holds.values()
            )
            hold = self.holds[job.request] = Hold(job, lease, Phase.CLAIMING, now)
            hold.traceparent, hold.pulled_at = traceparent, now
            if not careful:
                self._board_add(hold, now)
        return [self._claim(job.request, lease)]

    def _board_add(self, hold: Hold, now: float) -> None:
        prompt: list[int] = np.frombuffer(hold.job.prompt, dtype="<u4").tolist()
        job = hold.job
        hold.sequence = Sequence(
            job.request,
            len(prompt),
            prompt,
            job.sampling,
            job.max_tokens,
            job.min_tokens,
            frozenset(job.stop_ids),
            tenant=job.tenant,
            logprobs=job.logprobs,
            echo=job.echo,
            grammar=job.grammar,
        )
        self._board.add(hold.sequence)
        hold.on_board, hold.added_at = True, now

    def _claim(self, request: str, lease: str) -> Ask:
        """Of several suspects that wait, the first counts as running for the others: one goes at a time."""
        busy, own = 0, False
        for other, hold in self.holds.items():
            own = own or other == request
            busy += other != request and (hold.on_board or hold.phase is Phase.CLAIMING)
            busy += not own and hold.phase is Phase.WAITING
        return Ask(m.owner_of(request), m.Claim(request, self.id, lease, busy, self.kind))

    def replied(self, claim: m.Claim, reply: m.ClaimReply, now: float) -> list[Effect]:
        hold = self.holds.get(claim.request)
        if isinstance(reply, m.Granted):
            if hold is None or self.leaving:
                # dropped while the claim was under way: hand it straight on
                if claim.request in self.taken:
                    self.taken.away(claim.request, reply.epoch)
                return [self._yield(reply)]
            return self._granted(hold, claim, reply, now)
        if hold is None or hold.epoch:
            return []  # Gone means this delivery: what runs, runs on
        if isinstance(reply, m.Wait):
            if hold.on_board:
                self._board.drop(claim.request)
                hold.on_board = False
            hold.phase, hold.at = Phase.WAITING, now
        else:
            self._drop(claim.request)
        return []

    def _granted(self, hold: Hold, claim: m.Claim, reply: m.Granted, now: float) -> list[Effect]:
        if hold.epoch:
            if reply.epoch <= hold.epoch:
                return []
            if hold.on_board:
                self._board.drop(reply.request)
                hold.on_board = False
        if reply.alone:
            others = [
                (r, h) for r, h in self.holds.items() if h is not hold and h.phase is not Phase.FINISHED
            ]
            if any(other.phase is Phase.RUNNING for _, other in others):
                self._drop(reply.request)  # one was granted while this claim was under way
                return [self._yield(reply)]
            for request, _ in others:
                self._drop(request)
        self.taken.back(claim.request)
        hold.phase, hold.at, hold.lease = Phase.RUNNING, now, claim.lease
        hold.epoch, hold.detokenizer, hold.alone = reply.epoch, reply.detokenizer, reply.alone
        hold.ids, hold.odds, hold.finish, hold.vector = list(reply.committed), {}, "", b""
        hold.deadline = now + reply.left_ms / 1000
        hold.granted_at, hold.first_at, hold.resumed = now, 0.0, len(reply.committed)
        if not hold.on_board:
            self._board_add(hold, now)
        self._board.grant(reply.request, reply.epoch, reply.committed)
        return []

    def _yield(self, granted: m.Granted) -> Send:
        ref = m.Ref(granted.request, granted.epoch)
        return Send(GATEWAY, m.owner_of(granted.request), m.Yielded(self.id, [ref]))

    def unanswered(self, claim: m.Claim, *, gone: bool) -> list[Effect]:
        """The owner did not answer; `gone`: nobody listens there."""
        hold = self.holds.get(claim.request)
        if hold is not None and not hold.epoch:
            self._drop(claim.request)
        if not gone:
            return []  # the job is delivered again
        self.counts["orphans"] += 1
        return [Send(ORPHANS, "", m.Orphan(claim.request, claim.lease))]

    # -- tokens go out

    def stepped(self, outputs: list[Output], now: float) -> list[Effect]:
        """One frame for each detokenizer that has tokens in this step."""
        starts: dict[str, int] = {}
        told: list[Send] = []
        for out in outputs:
            hold = self.holds.get(out.request)
            if hold is None or hold.epoch != out.epoch:
                continue  # let go while the step ran
            assert out.index == len(hold.ids), f"{out.request}: token {out.index} after {len(hold.ids)}"
            hold.ids.append(out.token)
            hold.cached, hold.vector = out.cached, out.vector
            if out.odds:
                hold.odds[out.index] = out.odds
            if not hold.first_at:
                hold.first_at = now
                told.append(self._begun(hold))
            if out.finish:
                hold.phase, hold.at, hold.finish = Phase.FINISHED, now, out.finish
                hold.on_board = hold.alone = False
                told.append(self._vector(hold) if out.vector else self._decoded(hold, now))
            if not out.vector:
                starts.setdefault(out.request, out.index)
        runs = [self._run(request, self.holds[request], start) for request, start in starts.items()]
        return [*self._framed(runs), *told]

    # -- how long it took

    def _begun(self, hold: Hold) -> Send:
        """Told with the first token, not with the last: by then this engine may be dead."""
        wall = self._wall
        claim = m.Hop("claim", wall(hold.pulled_at), wall(hold.granted_at), hold.epoch)
        assert hold.sequence
        marks = [m.Mark("chunk", wall(at), tokens) for at, tokens in hold.sequence.chunks]
        notes: dict[str, str | int | float] = {
            "prompt_tokens": hold.sequence.prompt_len,
            "cached_tokens": hold.sequence.cached,
            "resumed_tokens": hold.resumed,
        }
        prefill = m.Hop("prefill", wall(hold.added_at), wall(hold.first_at), hold.epoch, notes, marks)
        return self._hops(hold.job.request, [claim, prefill])

    def _decoded(self, hold: Hold, now: float) -> Send:
        wall = self._wall
        first = m.Mark("first token", wall(hold.first_at), 1)
        notes: dict[str, str | int | float] = {"tokens": len(hold.ids) - hold.resumed}
        hop = m.Hop("decode", wall(hold.first_at), wall(now), hold.epoch, notes, [first])
        return self._hops(hold.job.request, [hop])

    def _hops(self, request: str, hops: list[m.Hop]) -> Send:
        return Send(GATEWAY, m.owner_of(request), m.Hops(Role.ENGINE, self.id, request, hops))

    def noted(self, noted: Noted, cache_used: float) -> list[Effect]:
        """A step of which a span is to be made, if any request in it is traced."""
        held = [hold for request in noted.requests if (hold := self.holds.get(request)) is not None]
        links = [hold.traceparent for hold in held if is_sampled(hold.traceparent)]
        if not links:
            return []
        notes: dict[str, str | int | float] = {
            "batch": len(noted.requests),
            "decoded_tokens": noted.decoded,
            "prefilled_tokens": noted.prefilled,
            "cache_used": round(cache_used, 4),
        }
        hop = m.Hop("engine.step", self._wall(noted.began), self._wall(noted.ended), notes=notes, links=links)
        owner = m.owner_of(held[0].job.request)
        return [Send(GATEWAY, owner, m.Hops(Role.ENGINE, self.id, "", [hop]))]

    def resend(self, resend: m.Resend) -> list[Effect]:
        runs: list[m.Run] = []
        vectors: list[Send] = []
        for gap in resend.gaps:
            hold = self.holds.get(gap.request)
            if hold is None or hold.epoch != gap.epoch:
                continue
            hold.detokenizer = gap.detokenizer
            if hold.vector:
                vectors.append(self._vector(hold))
            elif gap.start < len(hold.ids):
                runs.append(self._run(gap.request, hold, gap.start))
        frames = self._framed(runs)
        self.counts["resent"] += len(frames) + len(vectors)
        return [*frames, *vectors]

    def _vector(self, hold: Hold) -> Send:
        """It is no text: the owner is told past every detokenizer, as one would have told it."""
        request = hold.job.request
        said = m.Said(request, hold.epoch, 0, hold.ids, [""], hold.finish, hold.cached, vector=hold.vector)
        return Send(GATEWAY, m.owner_of(request), m.Delta(self.id, "", [said]))

    def _framed(self, runs: list[m.Run]) -> list[Send]:
        """One frame for each detokenizer; a prompt with its odds may be long, and has one for itself."""
        frames: dict[str, list[m.Run]] = {}
        for run in runs:
            to = self.holds[run.request].detokenizer
            key = run.request if run.read else to
            if to:
                frames.setdefault(key, []).append(run)
        return [
            Send(DETOKENIZER, self.holds[together[0].request].detokenizer, m.Frame(self.id, together))
            for together in frames.values()
        ]

    @staticmethod
    def _run(request: str, hold: Hold, start: int) -> m.Run:
        cached = 0 if start else hold.cached
        odds = [hold.odds.get(index) for index in range(start, len(hold.ids))] if hold.odds else []
        of, read = hold.sequence, None
        if of is not None and of.echo and not start and not hold.resumed:
            read = m.Read(of.tokens[: of.prompt_len], of.read)
        return m.Run(request, hold.epoch, start, hold.ids[start:], hold.finish, cached, odds, read)

    # -- the owner asks, and lets go

    def ping(self, ping: m.Ping, steps: int) -> m.Pong:
        held = [
            m.Held(ref.request, hold.epoch, len(hold.ids))
            for ref in ping.refs
            if (hold := self.holds.get(ref.request)) is not None and hold.epoch
        ]
        return m.Pong(self.id, steps, held)

    def release(self, release: m.Release, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for ref in release.refs:
            if not release.again:
                self.taken.over(ref)
            hold = self.holds.get(ref.request)
            if hold is not None and hold.epoch and hold.epoch <= ref.epoch:
                effects += self._let_go(hold, now)
                if release.again:
                    self.taken.away(ref.request, hold.epoch)
        return effects

    def _let_go(self, hold: Hold, now: float) -> list[Effect]:
        """Drop it, and tell how long it ran if nobody was told."""
        self._drop(hold.job.request)
        return [self._decoded(hold, now)] if hold.first_at and hold.phase is Phase.RUNNING else []

    def _drop(self, request: str) -> None:
        if self.holds.pop(request).on_board:
            self._board.drop(request)

    def tick(self, now: float) -> list[Effect]:
        """Every 50 ms or so; by the time it sees itself, the engine finds that it was stopped."""
        paused = now - self._ticked > ACK_WAIT_S
        self._ticked = now
        effects: list[Effect] = []
        for request, hold in list(self.holds.items()):
            if paused and hold.phase is not Phase.FINISHED:
                # The leases have gone elsewhere. That the owner fences us is the safety; this saves work.
                self.counts["fenced"] += 1
                self._drop(request)
                if hold.epoch:
                    self.taken.away(request, hold.epoch)
            elif hold.phase is Phase.WAITING and now - hold.at >= RECLAIM_S:
                hold.at = now
                effects.append(self._claim(request, hold.lease))
            elif hold.phase is Phase.RUNNING and now > hold.deadline:
                self.counts["expired"] += 1
                effects += self._let_go(hold, now)
            elif hold.phase is Phase.FINISHED and now - hold.at > FORGET_S:
                self._drop(request)
        if now - self._told_at >= HOLDING_S:
            self._told_at = now
            for owner, refs in self._by_owner([*self._held(), *self.taken.refs()]).items():
                if granted := [ref for ref in refs if ref.epoch]:
                    effects.append(Tell(owner, m.Holding(self.id, granted)))
        return effects

    def told(self, owner: str, over: m.Release, now: float) -> list[Effect]:
        self._absent.pop(owner, None)
        return self.release(over, now)

    def untold(self, owner: str, *, gone: bool) -> None:
        """The owner did not answer; `gone`: nobody listens there."""
        self._absent[owner] = self._absent[owner] + 1 if gone else 0
        if self._absent[owner] < ABSENT:
            return
        del self._absent[owner]
        for request in [request for request in self.holds if m.owner_of(request) == owner]:
            self.counts["abandoned"] += 1
            self._drop(request)
        self.taken.gone(owner)

    def _held(self) -> list[m.Ref]:
        return [m.Ref(request, hold.epoch) for request, hold in self.holds.items()]

    @staticmethod
    def _by_owner(refs: list[m.Ref]) -> dict[str, list[m.Ref]]:
        owners: dict[str, list[m.Ref]] = {}
        for ref in refs:
            owners.setdefault(m.owner_of(ref.request), []).append(ref)
        return owners

    def leave(self, now: float) -> list[Effect]:
        """Going away: every owner may have its requests continued elsewhere, now."""
        self.leaving = True
        owners = self._by_owner(self._held())
        told: list[Effect] = []
        for hold in list(self.holds.values()):
            if hold.phase is not Phase.FINISHED:
                told += self._let_go(hold, now)
        yielded = (Send(GATEWAY, owner, m.Yielded(self.id, refs)) for owner, refs in owners.items())
        return [*yielded, *told]
