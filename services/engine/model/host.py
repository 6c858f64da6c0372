"""Blocks of prefixes in this machine's memory: what a GPU has no room for, and what comes back to it."""

from collections import Counter, OrderedDict
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


class HostShelf:
    outlives = False

    def __init__(self, size: int, like: Array):
        """At most `size` bytes of blocks like this one."""
        self.counts: Counter[str] = Counter()
        self.places = size // like.nbytes if like.nbytes else 0
        self._kept: OrderedDict[bytes, Array] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: bytes) -> bool:
        return name in self._kept

    def put(self, name: bytes, contents: Array) -> None:
        """It may push out what was used longest ago; whoever has that in hand keeps it as it is. The contents
        are not copied, and are to stay what they are."""
        if name in self._kept or not self.places:
            return
        if len(self._kept) == self.places:
            self._kept.popitem(last=False)
        self._kept[name] = contents

    def take(self, name: bytes) -> Array | None:
        return self._kept.get(name)

    def touch(self, name: bytes) -> None:
        self._kept.move_to_end(name)
