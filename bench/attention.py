"""Attention alone, in each form that ONNX Runtime has of it on CUDA, at the same step.

    grouped    GroupQueryAttention over slots, as the engine's graphs have it; a mixed step has two
    no xqa     the same, its kernel for single tokens turned off
    scattered  of opset 24: RotaryEmbedding, TensorScatter and Attention over slots
    paged      PagedAttention over blocks: rows and chunk in one operator

A graph has some layers, each with keys and values of its own, so that a call of ONNX Runtime does not count
for much, and no layer finds its own in the GPU's cache. All forms are given the same, and write it in place;
what they find is compared with float64.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import table
from bench.limits import Limits, best
from millrace.convert.graph import CONTRIB, Graph, Inline
from millrace.convert.runtime import ort
from services.engine.model.device import Bound, Gpu, bound, carrier

Array = npt.NDArray[Any]

PAGE = 256
"""Tokens a block: what flash attention over blocks asks for at any size of heads."""

READ = 256 << 20
"""Bytes of keys and values in all layers: several times what a GPU keeps near its processors."""

WRONG = 0.03
"""Of the largest: 16 bits are at most a third of that from float64."""


@dataclass(frozen=True)
class Case:
    rows: int
    context: int  # tokens before the step, of every sequence
    chunk: int = 0  # of one sequence more

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Sequences and their new tokens."""
        return [(self.rows, 1), *([(1, self.chunk)] if self.chunk else [])]

    @property
    def counts(self) -> list[int]:
        """New tokens of every sequence."""
        return [tokens for count, tokens in self.sides for _ in range(count)]

    @property
    def length(self) -> int:
        return -(-(self.context + max(1, self.chunk)) // PAGE) * PAGE

    def layers(self, token: int) -> int:
        """How many to take, where a token has so many bytes."""
        return min(max(2, READ // (len(self.counts) * self.length * token)), 32)


CASES = (
    *(Case(rows, context) for context in (1024, 4096) for rows in (1, 16, 64)),
    *(Case(16, 1024, 512), Case(64, 4096, 512)),
)


@dataclass(frozen=True)
class Heads:
    query: int
    kv: int
    dim: int
    kind: Any = np.float16  # of everything

    @property
    def token(self) -> int:
        """Bytes of its keys and values."""
        return 4 * self.kv * self.dim


@dataclass
class Layers:
    """A graph under construction, and what it is given."""

    heads: Heads
    case: Case
    count: int
    graph: Graph = field(default_factory=lambda: Graph("attention", Inline()))
    far: dict[str, Array] = field(default_factory=dict)
    near: dict[str, Array] = field(default_factory=dict)  # read by operators on the host
    kept: dict[str, Array] = field(default_factory=dict)  # keys and values
    made: dict[str, list[int]] = field(default_factory=dict)

    def given(self, name: str, array: Array, *, near: bool = False) -> str:
        if name not in self.far | self.near:
            (self.near if near else self.far)[name] = array
            self.graph.input(name, array.dtype, array.shape)
        return name

    def held(self, name: str, array: Array) -> tuple[str, str]:
        """Memory that an operator reads, and writes in place."""
        self.kept[name] = array
        self.graph.input(name, array.dtype, array.shape)
        self.graph.output(f"{name}.out", array.dtype, array.shape)
        return name, f"{name}.out"

    def result(self, name: str, *shape: int) -> str:
        self.made[name] = list(shape)
        self.graph.output(name, self.heads.kind, shape)
        return name

    def new(self, at: int) -> Array:
        """Queries, keys and values of a side, [sequences, tokens, heads, dim]."""
        n = self.heads.query + 2 * self.heads.kv
        shape = (*self.case.sides[at], n, self.heads.dim)
        return np.random.default_rng(at).standard_normal(shape).astype(self.heads.kind)

    def past(self, at: int, kv: str) -> Array:
        """Keys or values of a side, [sequences, length, heads, dim]."""
        shape = (self.case.sides[at][0], self.case.length, self.heads.kv, self.heads.dim)
        return np.resize(self._some(at, kv), shape)

    def _some(self, at: int, kv: str) -> Array:
        """What is repeated."""
        return np.random.default_rng([at, ord(kv)]).standard_normal(65537).astype(self.heads.kind)

    def rope(self) -> tuple[str, str]:
        cos, sin = (part.astype(self.heads.kind) for part in (self.turn.real, self.turn.imag))
        return self.given("cos", cos), self.given("sin", sin)

    @cached_property
    def turn(self) -> Array:
        """What the two halves of a head are turned by, [length, dim / 2]."""
        half = self.heads.dim // 2
        exact = np.exp(1j * np.outer(np.arange(self.case.length), 1e6 ** -(np.arange(half) / half)))
        cos, sin = (part.astype(self.heads.kind).astype(float) for part in (exact.real, exact.imag))
        turn: Array = cos + 1j * sin
        return turn

    def expected(self, at: int, row: int) -> Array:
        """What the last token of a sequence finds, in float64."""
        h, start = self.heads, self.case.context
        new, half = self.new(at)[row].astype(float), h.dim // 2
        places = slice(start, start + len(new))
        turned = (new[..., :half] + 1j * new[..., half:]) * self.turn[places, None]
        new[:, : h.query + h.kv] = np.concatenate([turned.real, turned.imag], -1)[:, : h.query + h.kv]
        q, k, v = np.split(new, [h.query, h.query + h.kv], axis=1)
        first, shape = row * self.case.length, (start, h.kv, h.dim)
        which = np.arange(first * h.kv * h.dim, (first + start) * h.kv * h.dim)
        keys, values = (
            np.concatenate([self._some(at, kv).take(which, mode="wrap").astype(float).reshape(shape), part])
            for kv, part in (("k", k), ("v", v))
        )
        keys, values = (each.repeat(h.query // h.kv, 1) for each in (keys, values))
        weights = np.exp(np.einsum("hd,thd->ht", q[-1], keys) / np.sqrt(h.dim))
        found: Array = np.einsum("ht,thd->hd", weights / weights.sum(-1, keepdims=True), values)
        return found.reshape(-1)


def grouped(of: Layers) -> None:
    h, case = of.heads, of.case
    for at, (count, tokens) in enumerate(case.sides):
        end = case.context + tokens
        pasts = [np.ascontiguousarray(of.past(at, kv).transpose(0, 2, 1, 3)) for kv in "kv"]
        inputs = [
            of.given(f"last.{at}", np.full(count, end - 1, np.int32)),
            of.given(f"longest.{at}", np.array(end, np.int32), near=True),
            *of.rope(),
        ]
        qkv = of.given(f"qkv.{at}", of.new(at).reshape(count, tokens, -1))
        for i in range(of.count):
            held = [of.held(f"{kv}.{at}.{i}", past) for kv, past in zip("kv", pasts, strict=True)]
            y = of.result(f"y.{at}.{i}", count, tokens, h.query * h.dim)
            of.graph.nodes(
                "GroupQueryAttention",
                *(qkv, "", "", *(past for past, _ in held), *inputs),
                outputs=3,
                named=(y, *(out for _, out in held)),
                domain=CONTRIB,
                num_heads=h.query,
                kv_num_heads=h.kv,
                do_rotary=1,
            )


def scattered(of: Layers) -> None:
    g, h, case = of.graph, of.heads, of.case
    for at, (count, tokens) in enumerate(case.sides):
        parts = np.split(of.new(at), [h.query, h.query + h.kv], axis=2)
        places = np.arange(case.context, case.context + tokens)
        which = of.given(f"places.{at}", np.tile(places, (count, 1)))
        start = of.given(f"start.{at}", np.full(count, case.context))
        end = of.given(f"end.{at}", np.full(count, case.context + tokens))
        pasts = [of.past(at, kv).reshape(count, case.length, -1) for kv in "kv"]
        for i in range(of.count):
            # Each layer has its own: of two that turn the same, ONNX Runtime would leave one out.
            q, k, v = (
                of.given(f"{n}.{at}.{i}", part.reshape(count, tokens, -1))
                for n, part in zip("qkv", parts, strict=True)
            )
            turned = [
                g.node(
                    "RotaryEmbedding", x, *of.rope(), which, named=(f"turned.{n}.{at}.{i}",), num_heads=heads
                )
                for n, x, heads in (("q", q, h.query), ("k", k, h.kv))
            ]
            cache = []
            for kv, past, new in zip("kv", pasts, (turned[1], v), strict=True):
                name, out = of.held(f"past.{kv}.{at}.{i}", past)
                cache.append(g.node("TensorScatter", name, new, start, axis=1, named=(out,)))
            g.node(
                "Attention",
                *(turned[0], *cache, "", "", "", end),
                named=(of.result(f"y.{at}.{i}", count, tokens, h.query * h.dim),),
                q_num_heads=h.query,
                kv_num_heads=h.kv,
                is_causal=1,
            )


def paged(of: Layers) -> None:
    h, case = of.heads, of.case
    counts = case.counts
    sides = range(len(case.sides))
    new = np.concatenate([of.new(at).reshape(-1, h.query + 2 * h.kv, h.dim) for at in sides])
    # Blocks of a sequence lie apart, as they do after a while.
    spread = np.arange(len(counts) * (case.length // PAGE), dtype=np.int32).reshape(-1, len(counts)).T
    pasts = []
    for kv in "kv":
        past = np.concatenate([of.past(at, kv) for at in sides]).reshape(*spread.shape, PAGE, h.kv, h.dim)
        pasts.append(np.ascontiguousarray(past.transpose(1, 0, 2, 3, 4)).reshape(-1, *past.shape[2:]))
    qkv = of.given("qkv", new.reshape(len(new), -1))
    inputs = [
        of.given("starts", np.cumsum([0, *counts], dtype=np.int32)),
        of.given("before", np.full(len(counts), case.context, np.int32)),
        of.given("blocks", np.ascontiguousarray(spread)),
        *(*of.rope(), *[""] * 6, of.given("bounds", _bounds(case), near=True)),
    ]
    for i in range(of.count):
        held = [of.held(f"{kv}.{i}", past) for kv, past in zip("kv", pasts, strict=True)]
        of.graph.nodes(
            "PagedAttention",
            *(qkv, "", "", *(past for past, _ in held), *inputs),
            outputs=3,
            named=(of.result(f"y.all.{i}", len(new), h.query * h.dim), *(out for _, out in held)),
            domain=CONTRIB,
            num_heads=h.query,
            kv_num_heads=h.kv,
            do_rotary=1,
        )


def _bounds(case: Case) -> Array:
    """The most new tokens of a sequence; the most it has then, and the least that the longest has."""
    most = max(1, case.chunk)
    return np.array([most, case.context + most, case.context + most], np.int32)


FORMS: dict[str, tuple[Callable[[Layers], None], dict[str, str]]] = {
    "grouped": (grouped, {}),
    "no xqa": (grouped, {"ORT_ENABLE_XQA": "0"}),
    "scattered": (scattered, {}),
    "paged": (paged, {}),
}


def show(gpu: Callable[..., Gpu], heads: Heads, limits: Limits, cases: tuple[Case, ...] = CASES) -> None:
    rows: list[list[table.Cell]] = []
    for case in cases:
        tokens = case.rows * (case.context + 1) + (case.context + case.chunk if case.chunk else 0)
        cells: list[table.Cell] = [case.rows, case.context, case.chunk]
        cells.append(tokens * heads.token / limits.bandwidth * 1e3)
        for name, (write, env) in FORMS.items():
            write(of := Layers(heads, case, case.layers(heads.token)))
            for how in ("recorded", "one by one"):
                try:
                    cells.append(_taken(of, gpu(captures=how == "recorded"), env) * 1e3)
                except Wrong as error:
                    print(f"{name}, {how}, {case}: {error}")
                    cells.append("wrong")
                except Exception as error:  # that a form cannot do this is one of the answers
                    print(f"{name}, {how}, {case}: {' '.join(str(error).split())[:300]}", flush=True)
                    cells.append("cannot")
        rows.append(cells)
    columns = [f"{name}, {how}" for name in FORMS for how in ("recorded", "one by one")]
    columns = ["rows", "context", "chunk", "keys and values read", *columns]
    table.show(f"Attention of one layer in {np.dtype(heads.kind).name}, ms", columns, rows)


class Wrong(Exception):
    pass


def _taken(of: Layers, gpu: Gpu, env: dict[str, str]) -> float:
    """Seconds of a layer."""
    captures = gpu.captures
    attended = Attended(of, gpu, env)
    if captures and not gpu.captures:
        raise RuntimeError("not recorded: ONNX Runtime has put a part of it on the processor")
    attended.run()
    attended.forget()
    seconds = best(attended.run)
    if not (off := attended.error()) < WRONG:
        raise Wrong(f"{off:.2g} of the largest from float64, in {seconds / of.count * 1e3:.3g} ms")
    return seconds / of.count


class Attended:
    """A graph of layers, and all that is bound to it."""

    def __init__(self, of: Layers, gpu: Gpu, env: dict[str, str]):
        self._of = of
        model = of.graph.model()
        model.opset_import[0].version, model.ir_version = 24, 11
        options = ort.SessionOptions()
        options.log_severity_level = 3
        with environment(env):
            self._session = gpu.session(model.SerializeToString(), options, steady=True)
        self._binding = self._session.io_binding()
        self._held: dict[str, tuple[Any, list[int], Any]] = {}
        self._options = ort.RunOptions()
        if gpu.captures:
            self._options.add_run_config_entry("gpu_graph_id", "1")
        for name, array in of.near.items():
            self._binding.bind_input(name, *bound(array))
        for name, array in (of.far | of.kept).items():
            place = self._placed(gpu, name, array)
            self._binding.bind_input(name, *place)
            if name in of.kept:
                self._binding.bind_output(f"{name}.out", *place)
        for name, shape in of.made.items():
            self._binding.bind_output(name, *self._placed(gpu, name, np.zeros(shape, of.heads.kind)))

    def _placed(self, gpu: Gpu, name: str, array: Array) -> Bound:
        kind = carrier(array.dtype)
        self._held[name] = array.dtype, list(array.shape), gpu.value(np.uint8, array.nbytes)
        self._held[name][-1].update_inplace(np.ascontiguousarray(array).view(kind).reshape(-1).view(np.uint8))
        return gpu.part(self._held[name][-1], array.dtype, list(array.shape), 0)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)

    def found(self, name: str) -> Array:
        kind, shape, value = self._held[name]
        array: Array = value.numpy().view(kind).reshape(shape)
        return array

    def forget(self) -> None:
        """What was found, so that a replay has to find it again."""
        for name in self._of.made:
            _, _, value = self._held[name]
            value.update_inplace(np.zeros(value.shape(), np.uint8))

    def error(self) -> float:
        """How far the last layer's results are from float64, of the largest: for a sequence's last token, of
        the first sequence and the last, and of the chunk."""
        of = self._of
        names = [name for name in of.made if name.endswith(f".{of.count - 1}")]
        ends = np.cumsum(of.case.counts) - 1
        found = np.concatenate(
            [self.found(name).astype(float).reshape(-1, of.heads.query * of.heads.dim) for name in names]
        )
        every = [(at, row) for at, (count, _) in enumerate(of.case.sides) for row in range(count)]
        errors = []
        for one in {0, of.case.rows - 1, len(every) - 1}:
            expected = of.expected(*every[one])
            errors.append(np.abs(found[ends[one]] - expected).max() / np.abs(expected).max())
        return float(max(errors))


@contextmanager
def environment(given: dict[str, str]) -> Iterator[None]:
    """For what ONNX Runtime reads when a session is made."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
