"""How long a request waits for an engine: how many are ahead of it, and how fast they come to their end."""

import random
from collections import Counter
from collections.abc import Iterable

from services.gateway.owner.entry import Entry

SLOWEST = 0.01
"""Ends in a second. At fewer nothing can be foretold."""

MOST_RETRY_S = 60.0


def position(entry: Entry, entries: Iterable[Entry]) -> tuple[int, int]:
    """Its place among its tenant's jobs that wait, from 1, and how many are ahead of it in fact, as
    tenants take turns. (0, 0) if it does not wait. Jobs of other gateways are not counted."""
    if not entry.queued:
        return 0, 0
    ahead: Counter[str] = Counter(
        other.prompt.tenant
        for other in entries
        if other.queued and other.seq < entry.seq and other.prompt.model == entry.prompt.model
    )
    place = ahead[entry.prompt.tenant] + 1
    return place, place - 1 + sum(
        min(count, place) for tenant, count in ahead.items() if tenant != entry.prompt.tenant
    )


class Rate:
    """How many requests end in a second, averaged over some ten seconds."""

    def __init__(self) -> None:
        self._per_s = 0.0
        self._ended = 0

    def measured(self, ended: int) -> None:
        """Called once a second with how many have ended so far."""
        self._per_s += 0.1 * (ended - self._ended - self._per_s)
        self._ended = ended

    def wait_ms(self, ahead: int) -> int:
        """Until one runs that so many are ahead of; -1: nobody can tell."""
        return int(1000 * ahead / self._per_s) if self._per_s > SLOWEST else -1

    def retry_after(self, live: int) -> float:
        """In how many seconds a place in the queue is likely: spread, so that not all come back at once."""
        estimate = max(live, 1) / self._per_s if self._per_s > SLOWEST else 1.0
        return min(max(estimate, 1.0) * random.uniform(0.75, 1.25), MOST_RETRY_S)
