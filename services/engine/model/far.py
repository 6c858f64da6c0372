"""Keys and values in a GPU's memory: all slots, the pool of prefixes, and the ways between them and to here.

    slots   [layers, 2, slots, kv_heads, length, head_dim], length in whole blocks
    pool    [layers, 2, places, kv_heads, BLOCK, head_dim]

A block of one head is one line in both. Of each layer's keys, and of its values, the same lines move at
once, by graphs of nothing but copies: what they scatter into is bound as input and as output, so no more is
written. A line is copied in words of 8 bytes, each by a thread of its own; ScatterND has one for a line.
In this machine's memory a block lies as a whole, and comes or goes in one piece, from where or to where it
is to stay.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.convert.card import Card
from millrace.convert.graph import KINDS, Graph, Inline
from millrace.convert.runtime import ort
from services.engine.model.device import Array, Bound, Gpu, carrier
from services.engine.steps.prefix import BLOCK
from services.engine.steps.scheduler import Swap

STAGED = 32
"""Blocks that are on their way from or to this machine's memory at once: of an 8B model 64 MB. CUDA's Concat
takes no more inputs without a copy of their addresses."""

WORD = np.int64


@dataclass(frozen=True)
class Lines:
    """Some lines of each layer's keys and values."""

    at: Callable[[int], Bound]  # the memory of one layer's, by 2 * layer + (0 keys, 1 values)
    which: npt.NDArray[np.int64]  # block for block, head for head


class FarSlots:
    def __init__(self, gpu: Gpu, of: Card, slots: int, max_len: int, places: int = 0, host: int = 0):
        """One slot more than asked for is where a swap waits. `host`: bytes of this machine's memory that
        blocks are to have."""
        self._gpu = gpu
        self._kind = of.cache_kind
        self._parts = 2 * of.layers
        self._heads, self._dim = of.kv_heads, of.head_dim
        self.block: Array = np.empty((of.layers, 2, of.kv_heads, BLOCK, of.head_dim), carrier(self._kind))
        self._blocks = -(-max_len // BLOCK)  # of a slot
        self._slots, self._places = slots + 1, places
        self._row = BLOCK * of.head_dim * self._kind.itemsize  # bytes
        self._line = self._row // np.dtype(WORD).itemsize
        shape = (of.kv_heads, self._blocks * BLOCK, of.head_dim)
        self._value = gpu.value(self._kind, of.layers, 2, self._slots, *shape)
        pool = (self._parts, places * of.kv_heads, self._line)
        self._pool = gpu.value(WORD, *pool) if places else None
        self.bytes = (self._slots * self._blocks + places) * self._parts * self._heads * self._row
        self._move = self._session(self._moving)
        self._take = self._session(self._taking) if places else None
        self._put = self._session(self._putting) if places else None
        rooms = host // self.block.nbytes if places else 0
        # Some are on their way while all are taken.
        self._rooms = gpu.rooms(rooms + STAGED if rooms else 0, self.block)

    def bound(self, layer: int, kv: int, first: int, count: int) -> Bound:
        shape = [count, self._heads, self._blocks * BLOCK, self._dim]
        at = ((layer * 2 + kv) * self._slots + first) * self._heads * self._blocks * self._row
        return self._gpu.part(self._value, self._kind, shape, at)

    # -- between slots and pool

    def swap(self, swap: Swap) -> None:
        waiting = self._slots - 1
        if swap.first_tokens and swap.second_tokens:
            self._copy(swap.first, waiting, swap.first_tokens)
            self._copy(swap.second, swap.first, swap.second_tokens)
            self._copy(waiting, swap.second, swap.first_tokens)
        elif swap.first_tokens:
            self._copy(swap.first, swap.second, swap.first_tokens)
        elif swap.second_tokens:
            self._copy(swap.second, swap.first, swap.second_tokens)

    def _copy(self, source: int, target: int, tokens: int) -> None:
        count = -(-tokens // BLOCK)
        self._moved(self._in_slot(source, 0, count), self._in_slot(target, 0, count))

    def keep(self, slot: int, start: int, places: list[int]) -> None:
        self._moved(self._in_slot(slot, start, len(places)), self._in_pool(places))

    def load(self, slot: int, start: int, places: list[int]) -> None:
        self._moved(self._in_pool(places), self._in_slot(slot, start, len(places)))

    def _moved(self, source: Lines, target: Lines) -> None:
        binding = self._move.io_binding()
        self._from(binding, source)
        self._into(binding, target)
        self._move.run_with_iobinding(binding)

    # -- to this machine's memory and back

    def contents(self, places: list[int]) -> Iterator[Array]:
        """Of blocks of the pool, one after another, each the caller's own."""
        assert self._take is not None
        for start in range(0, len(places), STAGED):
            some = places[start : start + STAGED]
            binding = self._take.io_binding()
            self._from(binding, self._in_pool(some))
            found = [self._rooms.array() for _ in some]
            binding.bind_cpu_input("counts", np.array(self._staged(found), np.int64))
            for i, lines in enumerate(self._staged(found)):
                binding.bind_output(f"staged.{i}", *self._near(found, i, lines))
            self._take.run_with_iobinding(binding)
            yield from found

    def fetch(self, slot: int, start: int, contents: list[Array]) -> None:
        assert self._put is not None
        for first in range(0, len(contents), STAGED):
            some = contents[first : first + STAGED]
            binding = self._put.io_binding()
            for i, lines in enumerate(self._staged(some)):
                binding.bind_input(f"staged.{i}", *self._near(some, i, lines))
            self._into(binding, self._in_slot(slot, start + first * BLOCK, len(some)))
            self._put.run_with_iobinding(binding)

    def _staged(self, blocks: list[Array]) -> list[int]:
        """Lines of each layer's keys or values, by the number of the graph's block: none of those behind."""
        return [self._heads if i < len(blocks) else 0 for i in range(STAGED)]

    def _near(self, blocks: list[Array], i: int, lines: int) -> Bound:
        block = blocks[min(i, len(blocks) - 1)]
        assert block.flags.c_contiguous
        return "cpu", 0, KINDS[np.dtype(WORD)], [self._parts, lines, self._line], block.ctypes.data

    # -- lines

    def _in_slot(self, slot: int, start: int, count: int) -> Lines:
        assert start % BLOCK == 0 and start // BLOCK + count <= self._blocks, "blocks outside of a slot"
        lines = self._heads * self._blocks
        heads = np.arange(self._heads) * self._blocks
        blocks = start // BLOCK + np.arange(count)
        return Lines(
            lambda part: self._bound(self._value, (part * self._slots + slot) * lines, lines),
            (blocks[:, None] + heads).reshape(-1),
        )

    def _in_pool(self, places: list[int]) -> Lines:
        lines = self._places * self._heads
        which = np.array(places, np.int64)[:, None] * self._heads + np.arange(self._heads)
        return Lines(lambda part: self._bound(self._pool, part * lines, lines), which.reshape(-1))

    def _bound(self, value: Any, first: int, count: int) -> Bound:
        return self._gpu.part(value, WORD, [count, self._line], first * self._row)

    def _from(self, binding: Any, lines: Lines) -> None:
        binding.bind_cpu_input("from", lines.which)
        for part in range(self._parts):
            binding.bind_input(f"source.{part}", *lines.at(part))

    def _into(self, binding: Any, lines: Lines) -> None:
        binding.bind_cpu_input("to", lines.which[:, None])
        for part in range(self._parts):
            binding.bind_input(f"target.{part}", *lines.at(part))
            binding.bind_output(f"target.{part}.out", *lines.at(part))

    # -- graphs

    def _session(self, write: Callable[[Graph], None]) -> Any:
        graph = Graph("copies", Inline())
        write(graph)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        return self._gpu.session(graph.model().SerializeToString(), options)

    def _moving(self, g: Graph) -> None:
        self._scatter(g, self._gathered(g))

    def _taking(self, g: Graph) -> None:
        axis = g.constant([0], np.int64)
        each = [g.node("Unsqueeze", lines, axis) for lines in self._gathered(g)]
        names = tuple(f"staged.{i}" for i in range(STAGED))
        counts = g.input("counts", np.int64, [STAGED])
        g.nodes("Split", g.node("Concat", *each, axis=0), counts, outputs=STAGED, axis=1, named=names)
        for i, name in enumerate(names):
            g.output(name, WORD, [self._parts, f"lines.{i}", self._line])

    def _putting(self, g: Graph) -> None:
        blocks = [
            g.input(f"staged.{i}", WORD, [self._parts, f"lines.{i}", self._line]) for i in range(STAGED)
        ]
        staged = g.node("Concat", *blocks, axis=1)
        each = g.nodes("Split", staged, outputs=self._parts, axis=0, num_outputs=self._parts)
        axis = g.constant([0], np.int64)
        self._scatter(g, [g.node("Squeeze", one, axis) for one in each])

    def _gathered(self, g: Graph) -> list[str]:
        which = g.input("from", np.int64, ["lines"])
        sources = [g.input(f"source.{part}", WORD, ["source", self._line]) for part in range(self._parts)]
        return [g.node("Gather", source, which, axis=0) for source in sources]

    def _scatter(self, g: Graph, lines: list[str]) -> None:
        to = g.input("to", np.int64, ["lines", 1])
        words = g.node("Expand", to, g.constant([1, self._line], np.int64))
        for part, each in enumerate(lines):
            target = g.input(f"target.{part}", WORD, ["target", self._line])
            g.node("ScatterElements", target, words, each, axis=0, named=(f"target.{part}.out",))
            g.output(f"target.{part}.out", WORD, ["target", self._line])
