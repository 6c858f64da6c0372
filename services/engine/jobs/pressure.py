"""When memory or processor time runs short, the engine takes fewer requests, then none; what runs, runs on.

    calm     takes as many as it has slots
    tight    takes no more than half of that
    short    takes none: they wait in the queue, whose limit refuses what is too much

What ran here and was taken away is taken back all the same: it is no new load (`taken.py`).

Worse takes effect at once, better after a while: between the two marks of a level nothing changes.
"""

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

from millrace.capacity import Memory
from millrace.machine import Throttled


class Level(IntEnum):
    CALM = 0
    TIGHT = 1
    SHORT = 2


MARKS = {Level.TIGHT: 0.10, Level.SHORT: 0.04}
"""Shares of the memory that have to be available."""

CLEAR = 1.25
"""Times its mark, until a level is left."""

STOPPED = 0.9
"""Of the periods since the last sample in which the cgroup used up its time: tight."""

PATIENCE = 4
"""Samples in a row that must be better: a second."""


@dataclass(frozen=True)
class Sample:
    memory: Memory
    throttled: Throttled
    resident: int  # bytes of this process


class Pressure:
    def __init__(self, slots: int):
        self.level = Level.CALM
        self.counts: Counter[str] = Counter()  # how often each level was entered
        self._slots = slots
        self._better = 0
        self._throttled = Throttled(0, 0)

    @property
    def name(self) -> str:
        """As `Here` tells it: nothing while all is well."""
        return self.level.name.lower() if self.level else ""

    def room(self, room: int, load: int, again: int = 0) -> int:
        """Of the requests that could be taken, those that should be; `again`: those that ran here."""
        most = (self._slots, max(1, self._slots // 2), 0)[self.level]
        return max(0, min(room, max(most - load, again)))

    def sample(self, sample: Sample) -> bool:
        """Whether the level changed."""
        level = max(self._by_memory(sample.memory), self._by_time(sample.throttled))
        if level >= self.level:
            self._better = 0
        else:
            self._better += 1
            if self._better < PATIENCE:
                return False
            self._better = 0
        if level == self.level:
            return False
        if level > self.level:
            self.counts[level.name.lower()] += 1
        self.level = level
        return True

    def _by_memory(self, memory: Memory) -> Level:
        share = memory.available / max(memory.total, 1)
        for level in (Level.SHORT, Level.TIGHT):
            if share < MARKS[level] * (CLEAR if self.level >= level else 1.0):
                return level
        return Level.CALM

    def _by_time(self, throttled: Throttled) -> Level:
        before, self._throttled = self._throttled, throttled
        periods = throttled.periods - before.periods
        # The first sample counts from the beginning of the cgroup, which says nothing of now.
        if before.periods and periods > 0 and (throttled.stopped - before.stopped) / periods >= STOPPED:
            return Level.TIGHT
        return Level.CALM
