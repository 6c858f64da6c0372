"""Guests' keys and values, slot by slot, and the runs that add to them: in place, or grown."""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from millrace.convert.runtime import Unreadable, ort, session
from millrace.guest.form import BRANCH, Form, Put

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """Words of one slot, behind the so many that it holds."""

    slot: int
    start: int
    words: list[int]


class Cache(Protocol):
    def advance(self, parts: Sequence[Part]) -> Floats:
        """Compute as many words of each part, as one batch; the logits after the last one, [parts, vocab]."""
        ...

    def swap(self, first: int, first_count: int, second: int, second_count: int) -> None:
        """Two slots exchange what they hold."""
        ...


def opened(graph: Path, threads: int, *, quiet: bool = False) -> ort.InferenceSession:
    """`quiet`: a run that fails is an answer, and not a fault to be told of on stderr."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4 if quiet else 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return session(str(graph), options)
    except Unreadable:
        raise
    except Exception as error:  # ONNX Runtime has its own kinds
        raise ValueError(f"{graph}: {str(error).strip().splitlines()[0]}") from None


def puts(found: Any) -> list[Put]:
    return [Put(each.name, each.type, list(each.shape)) for each in found]


class InPlace:
    """One memory of all slots, past and present: [layers, 2, slots, kv_heads, max_len, head_dim].

    A batch is consecutive slots from the first on, or one slot. Each row's own length is told by its mask,
    which is right-padded. Pages are taken when they are first written.
    """

    def __init__(self, run: ort.InferenceSession, form: Form, slots: int, max_len: int):
        self._session = run
        self._form = form
        self._kind = np.float16 if form.cache == "fp16" else np.float32
        shape = (form.layers, 2, slots, form.kv_heads, max_len, form.head_dim)
        size = math.prod(shape) * np.dtype(self._kind).itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._memory = mmap.mmap(-1, size, flags=flags)
        self._all: Array = np.frombuffer(self._memory, self._kind).reshape(shape)

    def advance(self, parts: Sequence[Part]) -> Floats:
        parts = sorted(parts, key=lambda part: part.slot) if len(parts) > 1 else parts
        first = parts[0].slot
        assert [part.slot for part in parts] == list(range(first, first + len(parts))), "slots with gaps"
        ends = [part.start + len(part.words) for part in parts]
        mask = np.zeros((len(parts), max(ends)), self._form.words)
        for row, end in enumerate(ends):
            mask[row, :end] = 1
        feeds = _words(self._form, parts, mask)
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for layer, past, present in zip(self._all, self._form.past, self._form.present, strict=True):
            for whole, before, after in zip(layer, past, present, strict=True):
                part = whole[first : first + len(parts)]
                binding.bind_input(before, "cpu", 0, self._kind, part.shape, part.ctypes.data)
                binding.bind_output(after, "cpu", 0, self._kind, part.shape, part.ctypes.data)
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        names = [name for pair in self._form.present for name in pair]
        found = dict(zip([*names, "logits"], binding.get_outputs(), strict=True))["logits"]
        return _last(found.numpy())

    def swap(self, first: int, first_count: int, second: int, second_count: int) -> None:
        for layer in self._all:
            here, there = layer[:, first], layer[:, second]
            kept = there[:, :, :second_count].copy()
            there[:, :, :first_count] = here[:, :, :first_count]
            here[:, :, :second_count] = kept


class Grown:
    """Each slot's own tensors, new after every run. A batch's are padded on the left, which its mask says.

    So every run copies what it looks at, once here and once in the graph.
    """

    def __init__(self, run: ort.InferenceSession, form: Form, slots: int):
        self._session = run
        self._form = form
        kind = np.float16 if form.cache == "fp16" else np.float32
        self._empty = np.zeros((form.kv_heads, 0, form.head_dim), kind)
        self._held: list[list[Array]] = [[self._empty] * (2 * form.layers) for _ in range(slots)]

    def advance(self, parts: Sequence[Part]) -> Floats:
        for part in parts:
            if part.start == 0:
                self._held[part.slot] = [self._empty] * (2 * self._form.layers)
            held = self._held[part.slot][0].shape[1]
            assert held == part.start, f"slot {part.slot} holds {held} words, not {part.start}"
        longest, count = max(part.start for part in parts), len(parts[0].words)
        mask = np.ones((len(parts), longest + count), self._form.words)
        for row, part in enumerate(parts):
            mask[row, : longest - part.start] = 0
        feeds = _words(self._form, parts, mask)
        for i, name in enumerate(name for pair in self._form.past for name in pair):
            past = np.zeros(
                (len(parts), self._form.kv_heads, longest, self._form.head_dim), self._empty.dtype
            )
            for row, part in enumerate(parts):
                past[row, :, longest - part.start :] = self._held[part.slot][i]
            feeds[name] = past
        names = [name for pair in self._form.present for name in pair]
        logits, *after = self._session.run(["logits", *names], feeds)
        for row, part in enumerate(parts):
            # A copy, since a row of many would keep all of them.
            rows = [each[row, :, longest - part.start :] for each in after]
            self._held[part.slot] = [each.copy() for each in rows] if len(parts) > 1 else rows
        return _last(logits)

    def swap(self, first: int, first_count: int, second: int, second_count: int) -> None:
        self._held[first], self._held[second] = self._held[second], self._held[first]


def _words(form: Form, parts: Sequence[Part], mask: Array) -> dict[str, Array]:
    feeds = {"input_ids": np.array([part.words for part in parts], form.words), "attention_mask": mask}
    if form.positions:
        rows = [range(part.start, part.start + len(part.words)) for part in parts]
        feeds["position_ids"] = np.array(rows, form.words)
    if form.keep:
        feeds[form.keep] = np.array(1, np.int64)
    if form.branch:
        feeds[BRANCH] = np.array([any(part.start for part in parts)])
    return feeds


def _last(logits: Array) -> Floats:
    """Of the last word of each row; some graphs give no others."""
    return np.ascontiguousarray(logits[:, -1], np.float32)
