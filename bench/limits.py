"""What a device can do at most: bytes copied and products taken a second, by ONNX Runtime and by PyTorch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.convert.graph import Graph, Inline
from millrace.convert.runtime import ort
from services.engine.model.device import Gpu

REPEATS = 20


@dataclass(frozen=True)
class Limits:
    bandwidth: float  # bytes read and written, a second
    rate: float  # floating-point operations a second

    def seconds(self, moved: float, operations: float) -> float:
        """The least that a step takes which reads so many bytes and computes so much."""
        return max(moved / self.bandwidth, operations / self.rate)

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:.0f} GB/s, {self.rate / 1e12:.1f} TFLOP/s"


def by_ort(gpu: Gpu, copied: int = 1 << 30, width: int = 8192) -> Limits:
    """`copied`: bytes; `width`: of the square matrices, in 16 bits."""
    count = copied // 2
    one = best(_run(gpu, "Identity", [[count]], [count]))
    product = best(_run(gpu, "MatMul", [[width, width]] * 2, [width, width]))
    return Limits(2 * copied / one, 2 * width**3 / product)


def by_torch(torch: Any, copied: int = 1 << 30, width: int = 8192, device: str = "cuda") -> Limits:
    source = torch.empty(copied // 2, dtype=torch.float16, device=device).normal_()
    target = torch.empty_like(source)
    a, b = (torch.randn(width, width, dtype=torch.float16, device=device) for _ in range(2))

    def done(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    one, product = best(done(lambda: target.copy_(source))), best(done(lambda: a @ b))
    return Limits(2 * copied / one, 2 * width**3 / product)


def _run(gpu: Gpu, op: str, given: list[list[int]], made: list[int]) -> Callable[[], None]:
    graph = Graph("limit", Inline())
    graph.node(op, *(graph.input(f"x{i}", np.float16, shape) for i, shape in enumerate(given)), named=("y",))
    graph.output("y", np.float16, made)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = gpu.session(graph.model().SerializeToString(), options)
    binding, held = session.io_binding(), []
    chance = np.random.default_rng(0)
    for i, shape in enumerate(given):
        value = gpu.value(np.float16, *shape)
        # Zeros take less power, and are multiplied faster than anything real.
        value.update_inplace(np.resize(chance.standard_normal(1 << 20).astype(np.float16), shape))
        binding.bind_input(f"x{i}", *gpu.part(value, np.float16, shape, 0))
        held.append(value)
    held.append(gpu.value(np.float16, *made))
    binding.bind_output("y", *gpu.part(held[-1], np.float16, made, 0))

    def run(kept: object = held) -> None:
        session.run_with_iobinding(binding)

    return run


def best(run: Callable[[], object], repeats: int = REPEATS) -> float:
    run()
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return min(took)
