"""One trial: streams run, something happens, and every stream is held against its reference."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from millrace.up.broker import greets
from millrace.up.control import Row
from tests.chaos import prefill
from tests.chaos.load import LATE, Wish
from tests.chaos.site import Site
from tests.kit.client import Answer, ask

HANG_S = 30.0
REFUSED_S = 4.0
"""A gateway asks for six seconds, then it has a new request come again. On a busy machine a process may take
that long to start, and it tells twice a second that it did."""

LATE_S = 0.03
MOVED_S = 0.1
"""A stream that stalled for longer was moved; anything shorter may be a busy machine."""


@dataclass
class Outcome:
    """What became of the streams of one or several trials."""

    trials: int = 0
    streams: int = 0
    mismatches: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)  # of the streams that ran when it happened, in seconds
    excused: list[float] = field(default_factory=list)  # what of each stall no design could have spared
    late: list[float] = field(default_factory=list)  # first token of those asked for just after it
    notes: list[str] = field(default_factory=list)
    skipped: str = ""

    def add(self, other: "Outcome") -> None:
        self.trials += other.trials
        self.streams += other.streams
        for name in ("mismatches", "hangs", "failures", "stalls", "excused", "late", "notes"):
            getattr(self, name).extend(getattr(other, name))

    @property
    def bad(self) -> bool:
        return bool(self.mismatches or self.hangs or self.failures)

    def judge(self, name: str, wish: Wish, answer: Answer) -> None:
        """A stream that has ended."""
        self.streams += 1
        if answer.failure:
            self.failures.append(f"{name}: {answer.failure} after {len(answer.token_ids)} tokens")
        elif wrong := wish.differs(answer):
            if wish.exact or not wish.whole(answer):
                self.mismatches.append(f"{name}: {wrong}")
            else:
                self.notes.append(f"{name} went on with other words, {wrong}")

    def hang(self, name: str, answer: Answer) -> None:
        self.streams += 1
        self.hangs.append(f"{name}: hangs after {len(answer.token_ids)} tokens")


class Scene:
    """What a fault may touch."""

    def __init__(self, site: Site, chance: random.Random):
        self.site = site
        self.service = site.service
        self.chance = chance
        self.excused = 0.0  # seconds without any process that could have gone on
        self.recomputed = False  # whether another engine takes the streams over; that is excused too
        self.may_refuse = False  # whether a new request may get a 503 with Retry-After
        self.note = ""

    async def busiest(self, role: str) -> Row:
        """The process of this role that has most to do; the news of it is up to half a second old."""
        rows = await self.service.rows(role)
        return max(rows, key=lambda row: row.load)

    async def busy(self, role: str, load: int) -> Row:
        """As soon as one has that much to do."""
        for _ in range(15):
            row = await self.busiest(role)
            if row.load >= load:
                break
            await asyncio.sleep(0.05)
        return row

    async def again(self, role: str, gone: int) -> None:
        """Wait until as many processes of the role are ready, without that one; the wait is excused."""
        began = time.monotonic()
        while True:
            rows = await self.service.rows(role)
            if rows and all(row.pid != gone and row.state == "ready" for row in rows):
                break
            await asyncio.sleep(0.01)
        self._excuse(began)

    async def nats_again(self) -> None:
        began = time.monotonic()
        while not await greets("127.0.0.1", self.site.nats_port):
            await asyncio.sleep(0.005)
        self._excuse(began)

    def _excuse(self, began: float) -> None:
        self.excused = time.monotonic() - began
        self.may_refuse |= self.excused > REFUSED_S

    async def cut(self, pid: int, seconds: float) -> None:
        wire = self.site.wires[pid]
        wire.cut()
        try:
            await asyncio.sleep(seconds)
        finally:
            wire.heal()

    async def pause(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)


Inflict = Callable[[Scene], Awaitable[None]]


async def disturbed(scene: Scene, inflict: Inflict, *, late: bool = True) -> Outcome:
    """The streams of BODIES, the fault in their midst, and those of LATE just after it."""
    wishes = await scene.site.wishes()
    early = wishes[: -len(LATE)]
    wishes = wishes if late else early
    moved = asyncio.Event()
    answers = [Answer(0.0) for _ in wishes]

    async def client(index: int) -> None:
        await ask(scene.service.url, wishes[index].body, answer=answers[index], news=moved.set)
        moved.set()

    tasks = [asyncio.create_task(client(i)) for i in range(len(early))]
    share = scene.chance.uniform(0.1, 0.45)
    enough = share * sum(len(w.reference.events) for w in early if w.reference)
    with contextlib.suppress(TimeoutError):  # streams that do not even begin are hangs, below
        async with asyncio.timeout(HANG_S):
            while not _under_way(tasks, answers, enough):
                moved.clear()
                await moved.wait()
    struck = time.monotonic()
    fault = asyncio.create_task(_inflicted(inflict, scene))
    await asyncio.sleep(LATE_S)
    tasks += [asyncio.create_task(client(i)) for i in range(len(early), len(wishes))]
    await ended(tasks, answers)
    await fault

    outcome = Outcome(trials=1)
    hit: list[tuple[Wish, Answer]] = []
    for index, (task, wish, answer) in enumerate(zip(tasks, wishes, answers, strict=True)):
        name = f"stream {index + 1}"
        if not task.done():
            task.cancel()
            outcome.hang(name, answer)
            continue
        task.result()
        if scene.may_refuse and answer.status == 503 and answer.headers.get("retry-after", "").isdigit():
            outcome.streams += 1
            continue
        outcome.judge(name, wish, answer)
        if index >= len(early):
            outcome.late.append(answer.first_s)
        elif answer.times and answer.times[-1] > struck:
            hit.append((wish, answer))
    await asyncio.gather(*tasks, return_exceptions=True)
    _measure(scene, hit, outcome)
    if scene.note:
        outcome.notes.append(scene.note)
    return outcome


async def ended(tasks: Collection[asyncio.Task[Any]], answers: Collection[Answer]) -> None:
    """Waits for them, as long as any of them goes on: what is slow does not hang."""
    before, told = -1, 0
    while told > before and not all(task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=HANG_S)
        before, told = told, sum(len(answer.events) for answer in answers)


def _under_way(tasks: list[asyncio.Task[None]], answers: list[Answer], enough: float) -> bool:
    """Every stream has begun, and together they are that far."""
    begun = all(task.done() or answer.events for task, answer in zip(tasks, answers, strict=False))
    return begun and (sum(len(a.events) for a in answers) >= enough or all(task.done() for task in tasks))


def _measure(scene: Scene, hit: list[tuple[Wish, Answer]], outcome: Outcome) -> None:
    """The longest gap of each stream that ran when it happened, and what of it is excused."""
    moved = []
    for wish, answer in hit:
        gap, index = max((gap, index) for index, gap in enumerate(answer.gaps))
        stall = max(0.0, gap - wish.usual_gap)
        outcome.stalls.append(stall)
        outcome.excused.append(scene.excused)
        if stall > MOVED_S:
            had = sum(len(c.get("token_ids", ())) for c in answer.choices_before(index + 1))
            moved.append(
                (
                    answer.times[index + 1],
                    answer.usage.get("prompt_tokens", 0) + had,
                    len(outcome.excused) - 1,
                )
            )
    if scene.recomputed:
        moved.sort()
        for seconds, (_, _, place) in zip(prefill.again([n for _, n, _ in moved]), moved, strict=True):
            outcome.excused[place] += seconds


async def _inflicted(inflict: Inflict, scene: Scene) -> None:
    await asyncio.wait_for(inflict(scene), 4 * HANG_S)
