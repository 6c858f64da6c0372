"""The real model: ONNX Runtime sessions over one memory of keys and values.

A step is one of three graphs, by what it has: decoding rows, a chunk, or both. They share their weights
(see prepare.py), and each writes keys and values in place: the same memory is bound as past and as
present. ONNX Runtime takes a batch as consecutive slots, so the rows are the first slots, which the
scheduler sees to; a chunk may lie in any slot.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.convert import card
from millrace.convert.network import Form
from millrace.convert.runtime import ort, session
from services.engine.sample import Candidates
from services.engine.scheduler import Step, Swap

BINDINGS = 256
"""Kept by the shape of a step. Making one costs some 100 us, running one nothing."""

Array = npt.NDArray[Any]


class OrtModel:
    def __init__(
        self,
        folder: Path,
        slots: int,
        chunk: int,
        *,
        max_len: int = 0,
        threads: int = 0,
        graphs: Path | None = None,
    ):
        """`graphs`: where the same graphs lie prepared for this machine."""
        self.card = card.load(folder)
        self.max_len = min(max_len or self.card.max_len, self.card.max_len)
        self.slots = slots
        # With more threads than heads, ONNX Runtime splits a lone row's attention and sums it in another
        # order than a batch's: its bits would depend on its company.
        threads = min(threads or cores(), self.card.heads)
        self._sessions = {
            form: session(
                str((graphs or folder) / self.card.graphs[form.value]),
                _options(threads, prepared=graphs is not None),
            )
            for form in Form
        }
        self._cache = Cache(self.card, slots, self.max_len)
        self._bindings: OrderedDict[tuple[int, int, int, int], Any] = OrderedDict()
        self._tokens = np.zeros(slots + chunk, np.int64)
        self._split = np.zeros(2, np.int64)
        self._wanted = np.zeros(slots + 1, np.int64)
        self._before = {"rows": np.zeros(slots, np.int32), "chunk": np.zeros(1, np.int32)}
        self._longest = {"rows": np.zeros((), np.int32), "chunk": np.zeros((), np.int32)}
        self.logits = np.zeros(
            (slots + 1, self.card.vocab), np.float32
        )  # of the wanted rows of the last step
        self._best = np.zeros((slots + 1, self.card.candidates), np.float32)
        self._ids = np.zeros((slots + 1, self.card.candidates), np.int64)

    def run(self, step: Step) -> Candidates:
        for swap in step.swaps:
            self._cache.swap(swap)
        rows, chunk = step.rows, step.chunk
        count = len(rows)
        for row in rows:
            assert row.slot < count, f"row in slot {row.slot} of {count}"
            self._tokens[row.slot] = row.tokens[row.computed]
            self._before["rows"][row.slot] = row.computed
        if rows:
            self._longest["rows"][()] = self._before["rows"][:count].max() + 1
        more, slot = 0, 0
        if chunk:
            sequence, start, more = chunk.sequence, chunk.start, chunk.count
            slot = sequence.slot
            assert slot >= count, f"slot {slot} is a row's"
            self._tokens[count : count + more] = sequence.tokens[start : start + more]
            self._before["chunk"][0] = start + more - 1
            self._longest["chunk"][()] = start + more
            assert start + more <= self.max_len, "a sequence outgrew its slot"
        self._split[:] = count, more
        wanted = [row.slot for row in rows]
        if chunk and chunk.last:
            wanted.append(count + more - 1)
        self._wanted[: len(wanted)] = wanted
        alone = Form.CHUNK if wanted else Form.FILL
        form = alone if not rows else Form.MIXED if chunk else Form.ROWS
        self._sessions[form].run_with_iobinding(self._binding(form, count, more, slot, len(wanted)))
        return Candidates(self._ids[: len(wanted)].copy(), self._best[: len(wanted)].copy())

    def _binding(self, form: Form, rows: int, chunk: int, slot: int, wanted: int) -> Any:
        key = (rows, chunk, slot, wanted)
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        if len(self._bindings) == BINDINGS:
            self._bindings.popitem(last=False)
        binding = self._sessions[form].io_binding()

        def bind(into: Callable[..., None], name: str, array: Array) -> None:
            into(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        bind(binding.bind_input, "tokens", self._tokens[: rows + chunk])
        if wanted:
            bind(binding.bind_input, "wanted", self._wanted[:wanted])
            for name, array in (("logits", self.logits), ("best", self._best), ("ids", self._ids)):
                bind(binding.bind_output, name, array[:wanted])
        if form is Form.MIXED:
            bind(binding.bind_input, "split", self._split)
        for side, first, count in (("rows", 0, rows), ("chunk", slot, 1)):
            if side in form.sides:
                bind(binding.bind_input, f"{side}.before", self._before[side][:count])
                bind(binding.bind_input, f"{side}.longest", self._longest[side])
                for i, pair in enumerate(self._cache.layers):
                    for kv, array in zip("kv", pair, strict=True):
                        bind(binding.bind_input, f"{side}.{kv}.{i}", array[first : first + count])
                        bind(binding.bind_output, f"{side}.{kv}.{i}.out", array[first : first + count])
        self._bindings[key] = binding
        return binding


class Cache:
    """Keys and values of all slots: [layers, 2, slots, kv_heads, max_len, head_dim] in one allocation.

    Pages are taken when they are first written, so a long context costs nothing until it is used.
    """

    def __init__(self, of: card.Card, slots: int, max_len: int):
        kind = np.int8 if of.cache == "int8" else np.float32
        shape = (of.layers, 2, slots, of.kv_heads, max_len, of.head_dim)
        self.bytes = int(np.prod(shape)) * np.dtype(kind).itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._memory = mmap.mmap(-1, self.bytes, flags=flags)
        self._all: Array = np.frombuffer(self._memory, kind).reshape(shape)
        self.layers = [(layer[0], layer[1]) for layer in self._all]

    def swap(self, swap: Swap) -> None:
        first, second = self._all[:, :, swap.first], self._all[:, :, swap.second]
        ahead, behind = swap.first_tokens, swap.second_tokens
        kept = second[:, :, :, :behind].copy()
        second[:, :, :, :ahead] = first[:, :, :, :ahead]
        first[:, :, :, :behind] = kept


def cores() -> int:
    return len(os.sched_getaffinity(0))


def _options(threads: int, *, prepared: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if prepared:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # A worker that spins between operators takes the core from whoever would give it work: on a machine
    # that runs the rest of the service too it halves the speed; on a quiet one it gains a tenth at most.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
