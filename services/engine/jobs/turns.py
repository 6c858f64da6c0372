"""Whose job comes next: deficit round robin over the tenants that have any, by tokens. Pure.

A tenant's jobs are a *lane*. Of the lanes with jobs only those of the highest priority have a turn. In each
round a lane is given tokens by its weight, and has turns until it owes some; of those that owe none the one
served longest ago comes first. What a job takes is known when it has ended, so it is charged with a guess,
and put right then. A lane that is idle, without a job here or in the queue, owes and owns nothing: whoever
comes into another's flood has the next turn.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

from millrace.messages import Waiting
from millrace.subjects import Lane
from services.engine.jobs.roster import Phase, Roster

QUANTUM = 64.0
"""Tokens a round, for a weight of one. Smaller than a job: the order of turns is by what was used."""

COMPANY_S = 10.0
"""A tenant's share binds while another one has had a job here no longer ago than this. A slot that a long
answer holds is not had back before its end: what the others may need soon has to be kept free."""

GUESS = 64.0
"""Tokens of an answer, as long as none has ended."""

TINY = 1e-6
"""What sums of floating point numbers may be off by."""

RANKS = {"high": 0, "normal": 1, "low": 2}


@dataclass(slots=True)
class Queue:
    """A lane as this engine sees it."""

    rank: int
    weight: float
    share: float
    rung: int = 0  # the last bell heard; 0: there is nothing that we know of
    asked: int = 0  # jobs asked for that have not come
    called: int = 0  # the last bell heard when they were asked for
    deficit: float = 0.0
    answer: float = GUESS  # tokens that its answers have, on average
    took_at: float = -COMPANY_S
    running: dict[str, tuple[int, float]] = field(default_factory=dict)  # request -> prompt, charged

    @property
    def idle(self) -> bool:
        return not (self.rung or self.asked or self.running)


class Turns:
    def __init__(self, model: str, slots: int, roster: Roster, room: Callable[[], int]):
        """`room`: jobs that the engine would take now."""
        self._model = model  # its key
        self._slots = slots
        self._roster = roster
        self._room = room
        self._lanes: dict[str, Queue] = {}  # by consumer; who was served longest ago comes first
        self._homes: dict[str, Queue] = {}  # request -> its lane
        self._bells = 0

    # -- what is there

    def bell(self, waiting: list[Waiting]) -> None:
        self._bells += 1
        for said in waiting:
            name = Lane(self._model, said.tenant, said.priority).consumer
            lane = self._lanes.get(name)
            if lane is None:
                lane = Queue(RANKS[said.priority], said.weight, said.share)
                self._lanes = {name: lane, **self._lanes}
            lane.weight, lane.share, lane.rung = said.weight, said.share, self._bells

    def over(self, consumer: str, missing: int) -> None:
        """An ask has ended, and so many did not come: there are no more, unless the bell rang since."""
        lane = self._lanes[consumer]
        self._came(lane, missing)
        if lane.rung <= lane.called:
            lane.rung = 0
        self._rest(lane)

    def took(self, consumer: str, request: str, prompt: int, most: int, now: float, *, more: bool) -> None:
        """A job has come; `more`: there are others behind it."""
        lane = self._lanes.get(consumer)
        if lane is None:
            return  # of those who have no key
        self._came(lane, 1)
        if not more and lane.rung <= lane.called:
            lane.rung = 0
        self._ended(request, None)  # delivered a second time, it starts anew
        charge = prompt + min(float(most), lane.answer)
        lane.deficit -= charge
        lane.running[request] = prompt, charge
        self._homes[request] = lane
        lane.took_at = now

    def _came(self, lane: Queue, count: int) -> None:
        count = min(count, lane.asked)
        lane.asked -= count
        # The guess that the ask was charged with comes back; the rounds that it took to pay for it do not
        # stay as a credit, or asking an empty lane would earn tokens.
        lane.deficit = min(lane.deficit + count * lane.answer, QUANTUM * lane.weight)

    def _settle(self) -> None:
        for request in list(self._homes):
            hold = self._roster.holds.get(request)
            if hold is None:
                self._ended(request, None)
            elif hold.phase is Phase.FINISHED:
                self._ended(request, len(hold.ids))

    def _ended(self, request: str, tokens: int | None) -> None:
        """It does not run here any more, after so many tokens; None: nobody knows, and the guess stands."""
        lane = self._homes.pop(request, None)
        if lane is None:
            return
        prompt, charge = lane.running.pop(request)
        if tokens is not None:
            lane.deficit += charge - (prompt + tokens)
            lane.answer += (tokens - lane.answer) / 8
        self._rest(lane)

    @staticmethod
    def _rest(lane: Queue) -> None:
        if lane.idle:
            lane.deficit = 0.0

    # -- whose turn it is

    def plan(self, now: float) -> dict[str, int]:
        """Consumers to ask now, and for how many jobs each. They are charged with what is asked for."""
        self._settle()
        room = self._room() - sum(lane.asked for lane in self._lanes.values())
        plan: dict[str, int] = {}
        while room > 0 and (name := self._next(plan, now)):
            lane = self._lanes.pop(name)
            self._lanes[name] = lane
            lane.deficit -= lane.answer
            lane.asked += 1
            lane.called = self._bells
            plan[name] = plan.get(name, 0) + 1
            room -= 1
        return plan

    def _next(self, plan: dict[str, int], now: float) -> str:
        # One that is asked already is not asked again before the answer: it may have nothing more.
        able = {
            name: lane
            for name, lane in self._lanes.items()
            if lane.rung and lane.asked == plan.get(name, 0) and self._fits(lane, now)
        }
        if not able:
            return ""
        best = min(lane.rank for lane in able.values())
        able = {name: lane for name, lane in able.items() if lane.rank == best}
        rounds = min(ceil(-lane.deficit / (QUANTUM * lane.weight)) for lane in able.values())
        if rounds > 0:
            for lane in able.values():
                lane.deficit += rounds * QUANTUM * lane.weight
        return next(name for name, lane in able.items() if lane.deficit >= -TINY)

    def _fits(self, lane: Queue, now: float) -> bool:
        company = any(other is not lane and now - other.took_at < COMPANY_S for other in self._lanes.values())
        return not company or len(lane.running) + lane.asked < max(1, int(self._slots * lane.share))
