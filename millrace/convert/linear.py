"""Linear layers, one function per kind of arithmetic: y = x W^T, from the weights [out, in] as stored.

    fp32    as it is
    int8    activations in 8 bits with one scale a row, weights in 8 bits with one scale an output channel
    wide    the same with activations of 16 bits, as two rows of 8: they may have outliers
    fine    weights of 16 bits too, as two of 8: so may they
    int4    weights in 4 bits by blocks; reads half the bytes, which wins where one row is computed
    packed  the same with the codes of a folder that has its weights in 4 bits

    fp16    for a GPU, whose kernels read 16 bits: activations and weights
    bf16    the same in bfloat16
    half8   activations of fp16, weights in 8 bits by blocks
    half4   the same, weights in 4 bits by blocks; of these two the inputs are a multiple of WHOLE

Those of the processor but fp32 sum integers, so a row's result does not depend on the rows beside it. A GPU's
do not promise that.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from millrace.convert.graph import BFLOAT16, CONTRIB, KINDS, Graph
from millrace.convert.packed import Codes

Floats = npt.NDArray[np.float32]
Make = Callable[[], Floats]
Kernel = Callable[[Graph, str, str, int, int, Make], str]  # graph, x, name, in, out, weights -> y

BLOCK = 32
FINER = 1 / 254  # what is left is at most half a step, which makes 127 of these
WHOLE = 64
"""Inputs of which CUDA's kernels for 8 and 4 bits take a multiple. ONNX Runtime 1.31 gives them other
multiples of 32 as well: with 96 inputs, for one, it writes behind its memory, and computes NaN or fails."""
TINY = 1e-30  # weights that are all zero must not divide by zero


def fp32(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    return g.node("MatMul", x, g.weight(name, lambda: make().T))


def int8(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    """Unsigned activations, because ONNX Runtime's signed times signed is many times slower on x86.

    A row of zeros divides by zero; what that is rounded to is multiplied by zero in the end.
    """
    largest = _largest(g, x)
    zero = g.constant(128, np.uint8)
    rows = g.node("QuantizeLinear", g.node("Div", x, largest), g.constant(1 / 127, np.float32), zero)
    return g.node("Mul", _product(g, rows, name, make), largest)


def wide(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    """What the first 8 bits leave of a row is a second row, so that the weights are read once."""
    largest, rows = _wide(g, x)
    return g.node("Mul", _joined(g, _product(g, rows, name, make), 0, FINER), largest)


def fine(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    """What the first 8 bits leave of the weights are more output channels."""

    def both() -> tuple[npt.NDArray[np.int8], Floats]:
        weights = make()
        codes, scale = channels(weights)
        rest = np.rint((weights - codes * scale[:, None]) / (scale[:, None] * FINER)).astype(np.int8)
        return np.concatenate([codes, rest]), np.concatenate([scale, scale * FINER])

    largest, rows = _wide(g, x)
    product = _joined(g, _product(g, rows, name, make, both), -1, 1)
    return g.node("Mul", _joined(g, product, 0, FINER), largest)


def _largest(g: Graph, x: str) -> str:
    return g.node("ReduceMax", g.node("Abs", x), g.constant([-1], np.int64), keepdims=1)


def _wide(g: Graph, x: str) -> tuple[str, str]:
    largest = _largest(g, x)
    steps = g.node("Div", x, g.node("Mul", largest, g.constant(1 / 127, np.float32)))
    whole = g.node("Round", steps)
    rest = g.node("Div", g.node("Sub", steps, whole), g.constant(FINER, np.float32))
    both = g.node("Concat", whole, rest, axis=0)
    return largest, g.node("QuantizeLinear", both, g.constant(1, np.float32), g.constant(128, np.uint8))


def _product(
    g: Graph,
    rows: str,
    name: str,
    make: Make,
    quantise: Callable[[], tuple[npt.NDArray[np.int8], Floats]] | None = None,
) -> str:
    """Rows in steps of a 127th, times weights by output channel."""
    codes = cache(quantise or (lambda: channels(make())))
    return g.node(
        "MatMulIntegerToFloat",
        rows,
        g.weight(f"{name}.int8", lambda: codes()[0].T),
        g.constant(1, np.float32),
        g.weight(f"{name}.scale", lambda: codes()[1] / np.float32(127)),
        g.constant(128, np.uint8),
        domain=CONTRIB,
    )


def _joined(g: Graph, x: str, axis: int, share: float) -> str:
    """The first half, and the second's share."""
    coarse, rest = g.nodes("Split", x, outputs=2, axis=axis, num_outputs=2)
    return g.node("Add", coarse, rest if share == 1 else g.node("Mul", rest, g.constant(share, np.float32)))


def channels(weights: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Symmetric 8 bits with one scale an output channel: [out, in] and [out]."""
    codes, scale = np.empty(weights.shape, np.int8), np.empty(len(weights), np.float32)
    for some in parts(weights):  # a head is the largest thing in memory; its copies would be larger
        scale[some] = np.maximum(np.abs(weights[some]).max(axis=1), TINY) / np.float32(127)
        codes[some] = np.rint(weights[some] / scale[some, None])
    return codes, scale


def parts(weights: npt.NDArray[Any]) -> Iterator[slice]:
    """The rows, some millions of values at a time."""
    step = max(1, (1 << 22) // weights.shape[1])
    return (slice(at, at + step) for at in range(0, len(weights), step))


def int4(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    codes = cache(lambda: blocks(make()))
    weights = [g.weight(f"{name}.int4", lambda: codes()[0]), g.weight(f"{name}.scales", lambda: codes()[1])]
    return _int4(g, x, weights, k, n, BLOCK)


def packed(g: Graph, x: str, name: str, k: int, n: int, codes: Codes, *, half: bool = False) -> str:
    """The codes as they came, in blocks as ONNX Runtime has them. `half`: for a GPU."""
    size = codes.block
    kind = np.float16 if half else np.float32
    times = -(-k // size) // codes.scales.shape[1]  # blocks of a group

    def fours() -> npt.NDArray[np.uint8]:
        padded = np.pad(codes.fours(), ((0, 0), (0, -k % size)))
        return _paired(padded.reshape(n, -1, size))

    if (order := codes.order) is not None:
        x = g.node("Gather", x, g.weight(f"{name}.order", lambda: order), axis=-1)
    inputs = [
        g.weight(f"{name}.int4", fours),
        g.weight(f"{name}.scales", lambda: np.repeat(codes.scales, times, axis=1).astype(kind)),
    ]
    if (codes.zeros != 8).any():
        zeros = np.repeat(codes.zeros, times, axis=1)
        inputs.append(
            g.weight(f"{name}.zeros", lambda: _paired(np.pad(zeros, ((0, 0), (0, len(zeros[0]) % 2)))))
        )
    return _half(g, x, inputs, k, n, size, bits=4) if half else _int4(g, x, inputs, k, n, size)


def _int4(g: Graph, x: str, inputs: list[str], k: int, n: int, size: int) -> str:
    return g.contrib("MatMulNBits", x, *inputs, K=k, N=n, bits=4, block_size=size, accuracy_level=4)


def fp16(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    return _sixteen(g, x, f"{name}.fp16", make, np.float16)


def bf16(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    return _sixteen(g, x, f"{name}.bf16", make, BFLOAT16)


def _sixteen(g: Graph, x: str, stored: str, make: Make, kind: type[np.generic]) -> str:
    weights = g.weight(stored, lambda: make().T.astype(kind))
    return widened(g, g.node("MatMul", halved(g, x, kind), weights))


def half8(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    codes = cache(lambda: eights(make()))
    weights = [g.weight(f"{name}.half8", lambda: codes()[0]), g.weight(f"{name}.scales", lambda: codes()[1])]
    return _half(g, x, weights, k, n, BLOCK, bits=8)


def half4(g: Graph, x: str, name: str, k: int, n: int, make: Make) -> str:
    codes = cache(lambda: blocks(make()))
    weights = [
        g.weight(f"{name}.half4", lambda: codes()[0]),
        g.weight(f"{name}.scales", lambda: codes()[1].astype(np.float16)),
    ]
    return _half(g, x, weights, k, n, BLOCK, bits=4)


def _half(g: Graph, x: str, inputs: list[str], k: int, n: int, size: int, *, bits: int) -> str:
    made = g.contrib("MatMulNBits", halved(g, x, np.float16), *inputs, K=k, N=n, bits=bits, block_size=size)
    return widened(g, made)


def halved(g: Graph, x: str, kind: type[np.generic]) -> str:
    return g.node("Cast", x, to=KINDS[np.dtype(kind)])


def widened(g: Graph, x: str) -> str:
    return g.node("Cast", x, to=TensorProto.FLOAT)


def _paired(fours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two neighbours in a byte."""
    made: npt.NDArray[np.uint8] = fours[..., 0::2] | fours[..., 1::2] << np.uint8(4)
    return made


def blocks(weights: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Blocks along the inputs with one scale each: [out, blocks, bytes] and [out, blocks].

    The largest value of a block gets the end of the range that has one step more; its sign may be
    either, which is what makes a symmetric code use all its values.
    """
    n, k = weights.shape
    count = -(-k // BLOCK)
    codes, scales = np.empty((n, count, BLOCK // 2), np.uint8), np.empty((n, count), np.float32)
    for some in parts(weights):
        padded = np.pad(weights[some], ((0, 0), (0, -k % BLOCK))).reshape(-1, count, BLOCK)
        peak = np.take_along_axis(padded, np.abs(padded).argmax(axis=2)[:, :, None], axis=2)
        scale = (peak / np.float32(-8)).astype(np.float32)
        scale[scale == 0] = 1
        fours = np.clip(np.rint(padded / scale) + 8, 0, 15).astype(np.uint8)
        codes[some], scales[some] = _paired(fours), scale[:, :, 0]
    return codes, scales


def eights(weights: Floats) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Symmetric 8 bits around 128 in blocks along the inputs: [out, blocks, BLOCK] and [out, blocks]."""
    n, k = weights.shape
    count = -(-k // BLOCK)
    codes, scales = np.empty((n, count, BLOCK), np.uint8), np.empty((n, count), np.float16)
    for some in parts(weights):
        padded = np.pad(weights[some], ((0, 0), (0, -k % BLOCK))).reshape(-1, count, BLOCK)
        # Codes are of the scale as it is stored; one too small for 16 bits is a block of next to nothing.
        scale = (np.abs(padded).max(axis=2) / np.float32(127)).astype(np.float16)
        scale[scale == 0] = np.finfo(np.float16).tiny
        steps = np.rint(padded / scale.astype(np.float32)[:, :, None])
        codes[some] = (np.clip(steps, -128, 127) + 128).astype(np.uint8)
        scales[some] = scale
    return codes, scales


KERNELS: dict[str, Kernel] = {
    "fp32": fp32,
    "int8": int8,
    "wide": wide,
    "fine": fine,
    "int4": int4,
    "fp16": fp16,
    "bf16": bf16,
    "half8": half8,
    "half4": half4,
}

OF_GPU = {"fp16": "fp16", "bf16": "bf16", "int8": "half8", "int4": "half4"}
"""The kernel of each quantisation on a GPU."""
