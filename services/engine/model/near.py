"""Keys and values in this machine's memory."""

import math
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.convert.card import Card
from services.engine.model import pages
from services.engine.model.device import Bound, bound
from services.engine.steps.prefix import BLOCK
from services.engine.steps.scheduler import Swap

Array = npt.NDArray[Any]


class Cache:
    """Keys and values of all slots: [layers, 2, slots, kv_heads, max_len, head_dim] in one allocation; and of
    prefixes, block for block: [places, layers, 2, kv_heads, BLOCK, head_dim].

    Pages are taken when they are first written, so a long context costs nothing until it is used. Of large
    pages each layer's keys, and its values, take one of their own with the first token.
    """

    def __init__(self, of: Card, slots: int, max_len: int, places: int = 0, *, large: bool = False):
        kind = of.cache_kind
        self.max_len = max_len
        self._all = mapped(kind, of.layers, 2, slots, of.kv_heads, max_len, of.head_dim, large=large)
        self.block: Array = np.empty((of.layers, 2, of.kv_heads, BLOCK, of.head_dim), kind)
        self._pool = mapped(kind, places, *self.block.shape)
        self.bytes = self._all.nbytes

    def bound(self, layer: int, kv: int, first: int, count: int) -> Bound:
        return bound(self._all[layer, kv, first : first + count])

    def slot(self, slot: int) -> Array:
        """[layers, 2, kv_heads, max_len, head_dim], to be read and written in place."""
        return self._all[:, :, slot]

    def _in_slot(self, slot: int, start: int, count: int) -> Iterator[Array]:
        """Blocks of it."""
        for at in range(start, start + count * BLOCK, BLOCK):
            yield self.slot(slot)[:, :, :, at : at + BLOCK]

    def keep(self, slot: int, start: int, places: list[int]) -> None:
        for place, block in zip(places, self._in_slot(slot, start, len(places)), strict=True):
            self._pool[place] = block

    def load(self, slot: int, start: int, places: list[int]) -> None:
        self.fetch(slot, start, self.contents(places))

    def fetch(self, slot: int, start: int, contents: list[Array]) -> None:
        for content, block in zip(contents, self._in_slot(slot, start, len(contents)), strict=True):
            block[:] = content

    def contents(self, places: list[int]) -> list[Array]:
        return [self._pool[place] for place in places]

    def swap(self, swap: Swap) -> None:
        ahead, behind = swap.first_tokens, swap.second_tokens
        for layer in self._all:  # one by one: what is kept meanwhile stays in the processor's cache
            first, second = layer[:, swap.first], layer[:, swap.second]
            kept = second[:, :, :behind].copy()
            second[:, :, :ahead] = first[:, :, :ahead]
            first[:, :, :behind] = kept


def mapped(kind: np.dtype[Any], *shape: int, large: bool = False) -> Array:
    """Zeros, whose pages are taken when they are first written; they begin where a large page does."""
    size = math.prod(shape) * kind.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, size + pages.LARGE, flags=flags)
    pages.advise(memory, large=large)
    whole = np.frombuffer(memory, np.uint8)
    first = -whole.ctypes.data % pages.LARGE
    return whole[first : first + size].view(kind).reshape(shape)
