"""Linear layers, one function per kind of arithmetic: y = x W^T, from the weights [out, in] as stored.

    fp32    as it is
    int8    activations in 8 bits with one scale a row, weights in 8 bits with one scale an output channel
    w8      weights in 8 bits by blocks, activations in 8 bits by blocks: slower, kinder to outliers
    int4    weights in 4 bits by blocks; reads half the bytes, which wins where one row is computed

All but fp32 sum integers, so a row's result does not depend on the rows beside it.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from millrace.convert.graph import CONTRIB, Graph

Floats = npt.NDArray[np.float32]
Make = Callable[[], Floats]
Kernel = Callable[[Graph, str, str, int, int, Make], str]  # graph, x, name, in, out, weights -> y

BLOCK = 32
TINY = 1e-30  # weights that are all zero must not divide by zero


def fp32(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    return g.node("MatMul", x, g.weight(name, lambda: make().T))


def int8(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    """Unsigned activations, because ONNX Runtime's signed times signed is many times slower on x86.

    A row of zeros divides by zero; what that is rounded to is multiplied by zero in the end.
    """
    codes = cache(lambda: channels(make()))
    largest = g.node("ReduceMax", g.node("Abs", x), g.constant([-1], np.int64), keepdims=1)
    zero = g.constant(128, np.uint8)
    rows = g.node("QuantizeLinear", g.node("Div", x, largest), g.constant(1 / 127, np.float32), zero)
    product = g.node(
        "MatMulIntegerToFloat",
        rows,
        g.weight(f"{name}.int8", lambda: codes()[0].T),
        g.constant(1, np.float32),
        g.weight(f"{name}.scale", lambda: codes()[1] / np.float32(127)),
        zero,
        domain=CONTRIB,
    )
    return g.node("Mul", product, largest)


def channels(weights: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Symmetric 8 bits with one scale an output channel: [out, in] and [out]."""
    scale = np.maximum(np.abs(weights).max(axis=1), TINY).astype(np.float32) / np.float32(127)
    return np.rint(weights / scale[:, None]).astype(np.int8), scale


def _blocks(bits: int) -> Kernel:
    def kernel(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
        codes = cache(lambda: blocks(make(), bits))
        return g.contrib(
            "MatMulNBits",
            x,
            g.weight(f"{name}.int{bits}", lambda: codes()[0]),
            g.weight(f"{name}.scales", lambda: codes()[1]),
            K=k,
            N=n,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=4,
        )

    return kernel


def blocks(weights: Floats, bits: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Blocks along the inputs with one scale each: [out, blocks, bytes] and [out, blocks].

    The largest value of a block gets the end of the range that has one step more; its sign may be
    either, which is what makes a symmetric code use all its values.
    """
    n, k = weights.shape
    padded = np.pad(weights, ((0, 0), (0, -k % BLOCK))).reshape(n, -1, BLOCK)
    half = 1 << (bits - 1)
    peak = np.take_along_axis(padded, np.abs(padded).argmax(axis=2)[:, :, None], axis=2)
    scale = (peak / np.float32(-half)).astype(np.float32)
    scale[scale == 0] = 1
    codes = np.clip(np.rint(padded / scale) + half, 0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[:, :, 0::2] | codes[:, :, 1::2] << 4
    return codes, scale[:, :, 0]


int4 = _blocks(4)
w8 = _blocks(8)

KERNELS: dict[str, Kernel] = {"fp32": fp32, "int8": int8, "w8": w8, "int4": int4}
