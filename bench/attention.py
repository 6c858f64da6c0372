"""Attention alone, in each form that ONNX Runtime has of it on CUDA, at the same step.

    grouped    GroupQueryAttention over slots, as the engine's graphs have it; a mixed step has two
    no xqa     the same, its kernel for single tokens turned off
    scattered  of opset 24: RotaryEmbedding, TensorScatter and Attention over slots
    paged      PagedAttention over blocks: rows and chunk in one operator

A graph has some layers, each with keys and values of its own, so that a call of ONNX Runtime does not count
for much. All forms are given the same, and write it in place.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import table
from bench.limits import Limits, best
from millrace.convert.graph import CONTRIB, Graph, Inline
from millrace.convert.runtime import ort
from services.engine.model.device import Gpu, bound

Array = npt.NDArray[Any]

PAGE = 256
"""Tokens a block: what flash attention over blocks asks for at any size of heads."""


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
    def length(self) -> int:
        return -(-(self.context + max(1, self.chunk)) // PAGE) * PAGE


CASES = (
    *(Case(rows, context) for context in (1024, 4096) for rows in (1, 16, 64)),
    *(Case(16, 1024, 512), Case(64, 4096, 512)),
)


@dataclass(frozen=True)
class Heads:
    query: int
    kv: int
    dim: int


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
        self.graph.input(name, np.float16, array.shape)
        self.graph.output(f"{name}.out", np.float16, array.shape)
        return name, f"{name}.out"

    def result(self, name: str, *shape: int) -> str:
        self.made[name] = list(shape)
        self.graph.output(name, np.float16, shape)
        return name

    def new(self, at: int) -> Array:
        """Queries, keys and values of a side, [sequences, tokens, heads, dim]."""
        n = self.heads.query + 2 * self.heads.kv
        shape = (*self.case.sides[at], n, self.heads.dim)
        return np.random.default_rng(at).standard_normal(shape).astype(np.float16)

    def past(self, at: int, kv: str) -> Array:
        """Keys or values of a side, [sequences, length, heads, dim]."""
        shape = (self.case.sides[at][0], self.case.length, self.heads.kv, self.heads.dim)
        some = np.random.default_rng([at, ord(kv)]).standard_normal(65537).astype(np.float16)
        return np.resize(some, shape)

    def rope(self) -> tuple[str, str]:
        half = self.heads.dim // 2
        angles = np.outer(np.arange(self.case.length), 1e6 ** -(np.arange(half) / half))
        cos, sin = np.cos(angles).astype(np.float16), np.sin(angles).astype(np.float16)
        return self.given("cos", cos), self.given("sin", sin)


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
        q, k, v = (
            of.given(f"{n}.{at}", part.reshape(count, tokens, -1))
            for n, part in zip("qkv", parts, strict=True)
        )
        places = np.arange(case.context, case.context + tokens)
        which = of.given(f"places.{at}", np.tile(places, (count, 1)))
        start = of.given(f"start.{at}", np.full(count, case.context))
        end = of.given(f"end.{at}", np.full(count, case.context + tokens))
        pasts = [of.past(at, kv).reshape(count, case.length, -1) for kv in "kv"]
        for i in range(of.count):
            turned = [
                g.node(
                    "RotaryEmbedding", x, *of.rope(), which, named=(f"{n}.{at}.{i}.turned",), num_heads=heads
                )
                for n, x, heads in (("q", q, h.query), ("k", k, h.kv))
            ]
            cache = []
            for kv, past, new in zip("kv", pasts, (turned[1], v), strict=True):
                name, out = of.held(f"{kv}.{at}.{i}", past)
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
    counts = [tokens for count, tokens in case.sides for _ in range(count)]
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
            named=(of.result(f"y.{i}", len(new), h.query * h.dim), *(out for _, out in held)),
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


def show(
    gpu: Callable[..., Gpu], heads: Heads, limits: Limits, cases: tuple[Case, ...] = CASES, layers: int = 8
) -> None:
    rows: list[list[table.Cell]] = []
    for case in cases:
        tokens = case.rows * (case.context + 1) + (case.context + case.chunk if case.chunk else 0)
        least = tokens * 4 * heads.kv * heads.dim / limits.bandwidth
        cells: list[table.Cell] = [case.rows, case.context, case.chunk, least * 1e3]
        for name in FORMS:
            for captures in (True, False):
                try:
                    run, _ = prepared(name, gpu(captures=captures), heads, case, layers)
                    cells.append(best(run) / layers * 1e3)
                except Exception as error:  # that a form cannot do this is one of the answers
                    print(f"{name}, {case}: {' '.join(str(error).split())[:300]}")
                    cells.append(float("nan"))
        rows.append(cells)
    columns = [f"{name}, {how}" for name in FORMS for how in ("recorded", "one by one")]
    columns = ["rows", "context", "chunk", "keys and values read", *columns]
    table.show("Attention of one layer, ms", columns, rows)


def prepared(
    name: str, gpu: Gpu, heads: Heads, case: Case, layers: int
) -> tuple[Callable[[], None], Callable[[str], Array]]:
    """What runs it, and what gives a result of it."""
    write, env = FORMS[name]
    write(of := Layers(heads, case, layers))
    model = of.graph.model()
    model.opset_import[0].version, model.ir_version = 24, 11
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with environment(env):
        session = gpu.session(model.SerializeToString(), options, steady=True)
    binding, held = session.io_binding(), {}
    for each, array in of.near.items():
        binding.bind_input(each, *bound(array))
    for each, array in of.far.items():
        held[each] = gpu.value(array.dtype.type, *array.shape)
        held[each].update_inplace(array)
        binding.bind_input(each, *gpu.part(held[each], array.dtype, list(array.shape), 0))
    for each, array in of.kept.items():
        held[each] = gpu.value(np.float16, *array.shape)
        held[each].update_inplace(array)
        place = gpu.part(held[each], np.float16, list(array.shape), 0)
        binding.bind_input(each, *place)
        binding.bind_output(f"{each}.out", *place)
    for each, shape in of.made.items():
        held[each] = gpu.value(np.float16, *shape)
        binding.bind_output(each, *gpu.part(held[each], np.float16, shape, 0))
    run_options = ort.RunOptions()
    if gpu.captures:
        run_options.add_run_config_entry("gpu_graph_id", "1")

    def run(kept: object = of) -> None:
        session.run_with_iobinding(binding, run_options)

    def found(result: str) -> Array:
        value: Array = held[result].numpy()
        return value

    return run, found


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
