"""Responses that may be asked for again: in this process's memory, by their tenant, for a while."""

from collections.abc import Callable

from services.gateway.surfaces.responses.unfolding import Unfolding

KEEP_S = 3600.0
"""A conversation that is not gone on with for this long is over."""

KEEP_BYTES = 64 << 20
"""Hundreds of the longest answers, whose events are packed once they have ended."""


KEEP_COUNT = 4096
"""Looking through all of them takes less than a millisecond."""


class Kept:
    """What is too old is forgotten, and of what is too much the oldest. What is still being made stays."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        age_s: float = KEEP_S,
        size: int = KEEP_BYTES,
        count: int = KEEP_COUNT,
    ):
        self._clock = clock
        self._age_s = age_s
        self._size = size
        self._count = count
        self._found: dict[tuple[str, str], tuple[float, Unfolding]] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._found)

    def put(self, tenant: str, response: Unfolding) -> None:
        self._found[tenant, response.id] = self._clock(), response
        self._forget()

    def get(self, tenant: str, id: str) -> Unfolding | None:
        """Another tenant's is not found."""
        self._forget()
        found = self._found.get((tenant, id))
        return found[1] if found else None

    def drop(self, tenant: str, id: str) -> None:
        self._found.pop((tenant, id), None)

    def _forget(self) -> None:
        now = self._clock()
        total = sum(response.size for _, response in self._found.values())
        for key, (since, response) in list(self._found.items()):
            if now - since < self._age_s and total <= self._size and len(self._found) <= self._count:
                break
            if response.ended:
                total -= response.size
                del self._found[key]
