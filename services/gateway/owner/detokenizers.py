"""Which detokenizers are there, and which of them is given a text."""

from collections import Counter
from collections.abc import Iterable

from services.gateway.owner.neighbours import SEEN_S


class Detokenizers:
    def __init__(self) -> None:
        self._seen: dict[str, float] = {}  # by id, when last

    def ready(self, id: str, now: float) -> bool:
        """It says that it is. True if it was not there before."""
        new = id not in self._seen
        self._seen[id] = now
        return new

    def gone(self, id: str) -> bool:
        """True if it was there."""
        return self._seen.pop(id, None) is not None

    def reconnected(self, now: float) -> None:
        """All were silent meanwhile: who was there when NATS went away is taken to be there still."""
        last = max(self._seen.values(), default=now)
        self._seen = {id: now if last - seen < SEEN_S else seen for id, seen in self._seen.items()}

    def pick(self, given: Iterable[str], now: float, but: str = "") -> str:
        """The one with the fewest texts: `given` names the detokenizer of each. Empty if nobody is there."""
        there = [id for id, seen in self._seen.items() if now - seen < SEEN_S and id != but]
        if len(there) <= 1:
            return there[0] if there else ""
        load = Counter(given)
        return min(there, key=lambda id: (load[id], id))
