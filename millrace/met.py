"""Who has been met: whoever is new is told apart from whoever was heard lately."""

FORGET_S = 60.0
"""Whoever is silent for so long is gone, or has to be greeted again."""


class Met:
    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def first(self, id: str, now: float) -> bool:
        """It speaks. True if it was not heard within the last minute."""
        first = now - self._at.get(id, now - FORGET_S) >= FORGET_S
        if first:
            self._at = {other: at for other, at in self._at.items() if now - at < FORGET_S}
        self._at[id] = now
        return first

    def __len__(self) -> int:
        return len(self._at)
