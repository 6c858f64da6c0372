"""One processor for those who only pass words on, as long as it is enough for them.

A token goes through nats-server, a detokenizer, nats-server again and a gateway: one after the other, never
two at once. The kernel wakes each on a processor that has nothing to do, which sleeps, and whose caches know
nothing of it. On one processor each finds awake, and warm, what the one before it has used. Once there is
more to do than one processor should have, they have all of them again, at the next look.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

FULL = 0.5
"""Of a processor: whoever has more to do than this is better off with all."""

LIGHT = 0.3
"""From which on it is worth being together again."""

CALM_S = 3.0
"""For so long it has to be light first."""


def spent_ns(pid: int) -> int:
    """Processor time of all its threads. OSError if it is gone."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # what clock_getcpuclockid(3) returns


def place(pid: int, processors: set[int]) -> None:
    """All its threads; those to come are where their makers are. OSError if it is gone, or is not ours."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), processors)


class Company:
    def __init__(
        self,
        processors: Iterable[int] | None = None,
        *,
        spent: Callable[[int], int] = spent_ns,
        place: Callable[[int, set[int]], None] = place,
    ):
        """`processors`: those that there are for us."""
        if processors is None:
            # Not everywhere can a process be told where to run.
            processors = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else ()
        self._all = sorted(processors)
        # Services on one machine do not all meet on the same one.
        self._one = self._all[os.getpid() % len(self._all) :][:1] if self._all else []
        self._spent = spent
        self._place = place
        self._together = False
        self._calm_since: float | None = None
        self._looked = 0.0
        self._known: dict[int, int] = {}  # processor time of each at the last look
        self._placed: dict[int, bool] = {}  # whether it was told to be with the others

    def look(self, pids: Iterable[int], now: float) -> None:
        """To be called a few times a second, with those who are there."""
        if len(self._all) < 2:
            return
        known = self._read(pids)
        load = self._load(known, now)
        self._known, self._looked = known, now
        if load > (FULL if self._together else LIGHT):
            self._together, self._calm_since = False, None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= CALM_S:
            self._together = True
        for pid in known:
            if self._placed.get(pid, False) != self._together:
                with contextlib.suppress(OSError):
                    self._place(pid, set(self._one if self._together else self._all))
        self._placed = dict.fromkeys(known, self._together)

    def _read(self, pids: Iterable[int]) -> dict[int, int]:
        known = {}
        for pid in pids:
            with contextlib.suppress(OSError):
                known[pid] = self._spent(pid)
        return known

    def _load(self, known: dict[int, int], now: float) -> float:
        """Processors that they had together since the last look."""
        spent = sum(ns - self._known[pid] for pid, ns in known.items() if pid in self._known)
        return spent / 1e9 / max(now - self._looked, 1e-3)
