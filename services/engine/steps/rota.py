"""A rota: of many, whose turn is the next."""

REMEMBERED = 4096


class Rota:
    def __init__(self, most: int = REMEMBERED) -> None:
        """Who had none within the last `most` ones of others is as one who never had any."""
        self._last: dict[str, int] = {}  # in the order of their turns
        self._count = 0
        self._most = most

    def last(self, name: str) -> int:
        """The number of its last turn: the least is whose the next one is."""
        return self._last.get(name, 0)

    def had(self, name: str) -> None:
        self._count += 1
        self._last.pop(name, None)
        self._last[name] = self._count
        if len(self._last) > self._most:
            del self._last[next(iter(self._last))]
