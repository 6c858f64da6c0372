"""Which computed prefixes are kept, and where: a radix tree over blocks of tokens, as mere bookkeeping.

Keys and values of a block depend on every token before it, so a block is known by its own tokens and the
block before. Each tenant has a root of his own: what one has computed is never found by another.

The blocks that were used last stay. A block is always younger than those behind it, so the oldest is a leaf,
and what is let go leaves nothing behind that could not be reached.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator

BLOCK = 16
"""Tokens. What follows the last whole block is computed again, on average half a block; a shorter block would
be copied in smaller pieces."""

Key = tuple[int | str, tuple[int, ...]]  # the number of the block before, or the tenant; the block's tokens


class Prefixes:
    def __init__(self, places: int):
        """`places`: of the pool that holds the blocks' contents."""
        self.counts: Counter[str] = Counter()
        self._blocks: OrderedDict[Key, tuple[int, int]] = OrderedDict()  # number and place; oldest first
        self._free = list(range(places))
        self._places = places
        self._number = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def places(self) -> Iterator[int]:
        """Those that are taken, in the order in which they will be let go."""
        return (place for _, place in self._blocks.values())

    def find(self, tenant: str, tokens: list[int]) -> list[int]:
        """The places of the longest prefix that is kept, block for block. One token at least is left over:
        without computing it there is nothing to sample from."""
        found = self._path(tenant, tokens, len(tokens) - 1)
        self._touch(found)
        return [self._blocks[key][1] for key in found]

    def keep(self, tenant: str, tokens: list[int], count: int) -> tuple[int, list[int]]:
        """The first `count` tokens are computed: the first that has to be copied, and the places, block for
        block, to copy to."""
        path = self._path(tenant, tokens, count)
        self._touch(path)
        known = len(path)
        places: list[int] = []
        own = set(path)
        before: int | str = self._blocks[path[-1]][0] if path else tenant
        for start in range(known * BLOCK, count - BLOCK + 1, BLOCK):
            place = self._take(own)
            if place is None:
                break  # the sequence alone is longer than the pool
            key = (before, tuple(tokens[start : start + BLOCK]))
            self._number += 1
            before = self._number
            self._blocks[key] = before, place
            places.append(place)
            path.append(key)
            own.add(key)
        self._touch(path)
        assert len(self._free) + len(self._blocks) == self._places, "a block leaked"
        return known * BLOCK, places

    def _path(self, tenant: str, tokens: list[int], count: int) -> list[Key]:
        path: list[Key] = []
        before: int | str = tenant
        for start in range(0, count - BLOCK + 1, BLOCK):
            key = (before, tuple(tokens[start : start + BLOCK]))
            if (block := self._blocks.get(key)) is None:
                break
            path.append(key)
            before = block[0]
        return path

    def _touch(self, path: list[Key]) -> None:
        for key in reversed(path):
            self._blocks.move_to_end(key)

    def _take(self, own: set[Key]) -> int | None:
        if self._free:
            return self._free.pop()
        oldest = next(iter(self._blocks), None)
        if oldest is None or oldest in own:
            return None
        self.counts["prefixes_evicted"] += 1
        return self._blocks.pop(oldest)[1]
