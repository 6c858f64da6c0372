"""Which computed prefixes are kept, and where: a radix tree over blocks of tokens, as mere bookkeeping.

Keys and values of a block depend on every token before it, so a block's name is the digest of its tokens and
of the name before: whoever has the names of a prompt finds the longest known prefix by asking for them in
turn. Each tenant's names begin with his own, so what one has computed is never found by another.

The blocks that were used last stay. A block is always younger than those behind it, so what goes is the end
of a prefix, and what is left is one. What goes is put on a shelf, if there is one.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from services.engine.steps.sequence import Sequence

BLOCK = 16
"""Tokens. What follows the last whole block is computed again, on average half a block; a shorter block would
be copied in smaller pieces."""

LEAST = 2
"""Blocks, from which on the shelf is worth its while. From a file in the page cache a block of a 0.6B model
comes in 1 ms (0.9 MB: read 0.1, checked 0.6, copied 0.3), and computing it takes 25, so one would do. But a
disk that has to seek takes 10 ms, and a 135M model only 8 for a block."""


class Shelf(Protocol):
    """Where blocks lie that have no place in the pool any more, by name."""

    places: int
    outlives: bool  # the engine, so that what is in the pool when it ends belongs there too

    def __contains__(self, name: bytes) -> bool: ...

    def take(self, name: bytes) -> Any | None:
        """Its contents; none, if they are not what was put there."""
        ...

    def touch(self, name: bytes) -> None:
        """It is in use: others go first."""
        ...


class Keeper(Shelf, Protocol):
    """A shelf as the model sees it, which puts the blocks there."""

    counts: Counter[str]

    def __len__(self) -> int: ...

    def put(self, name: bytes, contents: Any) -> None:
        """It may push out what was used longest ago."""
        ...


class Prefixes:
    def __init__(self, places: int, shelf: Shelf | None = None):
        """`places`: of the pool that holds the blocks' contents."""
        self.counts: Counter[str] = Counter()
        self._placed: OrderedDict[bytes, int] = OrderedDict()  # oldest first
        self._free = list(range(places))
        self._places = places
        self._shelf = shelf

    def __len__(self) -> int:
        return len(self._placed)

    def placed(self) -> Iterator[tuple[bytes, int]]:
        """The blocks and their places, in the order in which they will be let go."""
        return iter(self._placed.items())

    def left(self) -> list[tuple[bytes, int]]:
        """What would be lost with the pool: of as many young ones as the shelf holds, those not there yet."""
        if self._shelf is None or not self._shelf.outlives or not self._shelf.places:
            return []
        young = list(self._placed.items())[-self._shelf.places :]
        return [(name, place) for name, place in young if name not in self._shelf]

    def find(self, sequence: Sequence, first: int = 0) -> tuple[list[int], list[Any]]:
        """The longest prefix that is kept, from its block `first` on: the places, and then the contents of
        blocks from the shelf. One token at least is left over: without computing it there is nothing to
        sample from."""
        if not self._places:
            return [], []
        names = _names(sequence, min(sequence.alike, len(sequence.tokens) - 1))
        known = self._known(names)
        self._touch(known)
        beyond = max(first, len(known))
        return [self._placed[name] for name in known[first:]], self._taken(names[beyond:])

    def _taken(self, names: list[bytes]) -> list[Any]:
        contents: list[Any] = []
        shelf = self._shelf
        if shelf is not None and len(names) >= LEAST and all(name in shelf for name in names[:LEAST]):
            for name in names:
                if (content := shelf.take(name) if name in shelf else None) is None:
                    break
                contents.append(content)
            for name in reversed(names[: len(contents)]):
                shelf.touch(name)
        self.counts["prefixes_restored"] += len(contents)
        return contents

    def keep(self, sequence: Sequence) -> tuple[int, list[int], list[tuple[bytes, int]]]:
        """What is computed is kept: the first block that has to be copied, and the places, block for block,
        to copy to; and which blocks have to go to the shelf before, from where."""
        if not self._places:
            return 0, [], []
        names = _names(sequence, min(sequence.alike, sequence.computed))
        known = self._known(names)
        self._touch(known)
        own, places, going = set(known), [], []
        for name in names[len(known) :]:
            if self._free:
                place = self._free.pop()
            else:
                oldest = next(iter(self._placed), None)
                if oldest is None or oldest in own:
                    break  # the sequence alone is longer than the pool
                place = self._placed.pop(oldest)
                self.counts["prefixes_evicted"] += 1
                if self._shelf is not None and oldest not in self._shelf:
                    going.append((oldest, place))
            self._placed[name] = place
            own.add(name)
            places.append(place)
        self._touch(names[: len(known) + len(places)])
        assert len(self._free) + len(self._placed) == self._places, "a block leaked"
        return len(known), places, going

    def _known(self, names: list[bytes]) -> list[bytes]:
        for i, name in enumerate(names):
            if name not in self._placed:
                return names[:i]
        return names

    def _touch(self, names: list[bytes]) -> None:
        for name in reversed(names):
            self._placed.move_to_end(name)


def _names(sequence: Sequence, count: int) -> list[bytes]:
    """Of the whole blocks among the first `count` tokens."""
    names, tokens = sequence.blocks, sequence.tokens
    for start in range(len(names) * BLOCK, count - BLOCK + 1, BLOCK):
        before = names[-1] if names else hashlib.sha256(sequence.tenant.encode()).digest()
        block = np.array(tokens[start : start + BLOCK], "<u4").tobytes()
        names.append(hashlib.sha256(before + block).digest())
    return names[: count // BLOCK]
