"""What a model is to be computed with, chosen by what it does with an ordinary text.

A layer's keys and values get the scales of an 8-bit cache. Its linear layers get their arithmetic: the
quickest whose error is small enough, measured on what they read. Where a few input channels are far larger
than the others, they drown the others in rounding; then it is tried to have the weights take a part of it.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from millrace.convert.architecture import Architecture
from millrace.convert.forward import Seen
from millrace.convert.graph import Graph, Inline
from millrace.convert.linear import KERNELS, WHOLE
from millrace.convert.network import Linear, Plan, Scales
from millrace.convert.runtime import session

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

MARGIN = 1.1  # beyond the largest value seen: what lies above is cut off
COARSE = 1e-3  # rounding noise, as a share of a middling channel's variance, above which each gets a scale

ROWS = 128  # of what a linear layer read; more say no more about its error

FINE = 5e-4  # an error that nothing is tried against: that of 8 bits without outliers
MOST = {"int8": 1e-3, "wide": 1e-3, "int4": 2e-2, "fine": np.inf, "fp32": np.inf}
"""The largest error of each kernel that is taken; beyond it, the next one is tried."""

ALPHAS = (0.25, 0.5, 0.75)
"""How much of the channels' differences the weights take: all that is done for them costs the weights."""


def layer(a: Architecture, plan: Plan, i: int, seen: Seen, *, cache: bool) -> None:
    """Plan one layer by what it showed."""
    for linear, x in seen.linears:
        arithmetic(a, plan, linear, x, seen.streams.get(linear.name))
    if cache:
        values = seen.values
        smooth = plan.smooth.get(f"model.layers.{i}.self_attn.o_proj")
        if smooth is not None:
            values = values / smooth.reshape(a.kv_heads, -1, a.head_dim)[:, :1]
        by_channel = coarse(seen.keys) or coarse(values)
        plan.scales.append(
            Scales(steps(seen.keys, by_channel=by_channel), steps(values, by_channel=by_channel))
        )


def coarse(seen: Floats) -> bool:
    """Whether a few channels are so large that the others would drown in the rounding of one scale."""
    one = float(np.abs(seen).max()) * MARGIN / 127
    return one**2 / 12 > COARSE * float(np.median(seen.var(axis=1, dtype=np.float64)))


def steps(seen: Floats, *, by_channel: bool) -> Floats:
    """What one step of 8 bits is worth: [1], or [1, kv_heads, 1, head_dim]."""
    largest = np.abs(seen).max(axis=1)
    if not by_channel:
        largest = largest.max(keepdims=True).reshape(1)
    # A channel that was silent here must still be able to speak.
    floor = max(float(largest.mean()) * 1e-2, 1e-6)
    scale: Floats = (np.maximum(largest, floor) * MARGIN / 127).astype(np.float32)
    return scale[None, :, None, :] if by_channel else scale


# -- linear layers


def arithmetic(a: Architecture, plan: Plan, linear: Linear, x: Floats, stream: Floats | None = None) -> None:
    """The kernel of a linear layer that reads `x`, and what its input is divided by before it.

    `stream`: what its output becomes a part of, if its error is to be judged by that.
    """
    as_codes = plan.packed and linear.packed
    if plan.half:
        if linear.k % WHOLE and (as_codes or plan.kernel in ("half8", "half4")):
            plan.kernels[linear.name] = "fp16"
        return
    if plan.kernel == "fp32" or as_codes:
        return
    rows = slice(None, None, max(1, len(x) // ROWS))
    x, weights = x[rows], linear.weights()
    expected = x @ weights.T
    size = differences(expected if stream is None else stream[rows])
    for kernel in dict.fromkeys([plan.kernel, "int8", "wide", "fine"]):
        wrong, smooth = error(kernel, linear, x, weights, expected, size), None
        if kernel in ("int8", "int4") and wrong > FINE and not plan.packed:
            for tried in smoothings(a, linear, x, weights):
                less = error(kernel, linear, x / tried, weights * tried, expected, size)
                if less < wrong * 0.9:  # a hair's breadth is not worth the weights' disturbance
                    wrong, smooth = less, tried
        if wrong <= MOST[kernel]:
            break
    if kernel != plan.kernel:
        plan.kernels[linear.name] = kernel
    if smooth is not None:
        plan.smooth[linear.name] = smooth


def differences(rows: Floats) -> Wide:
    """How far each row is from the others, squared: what all have in common says nothing."""
    found: Wide = np.square(rows - rows.mean(axis=0)).sum(axis=1, dtype=np.float64)
    return found


def error(kernel: str, linear: Linear, x: Floats, weights: Floats, expected: Floats, size: Wide) -> float:
    """Squared, relative to the size of each row, on average."""
    g = Graph("linear", Inline())
    y = KERNELS[kernel](
        g, g.input("x", np.float32, ["rows", linear.k]), linear.name, linear.k, linear.n, lambda: weights
    )
    g.output(y, np.float32, ["rows", linear.n])
    found = session(g.model().SerializeToString()).run([y], {"x": x})[0]
    wrong = np.square(found - expected).sum(axis=1, dtype=np.float64)
    return float((wrong[size > 0] / size[size > 0]).mean()) if size.any() else 0.0


def smoothings(a: Architecture, linear: Linear, x: Floats, weights: Floats) -> Iterable[Floats]:
    """Factors of the input channels, powers of two so that to multiply with them rounds nothing."""
    read = np.abs(x).max(axis=0)
    held = np.abs(weights).max(axis=0)
    if linear.name.endswith("o_proj"):  # heads that share a value share its factor
        heads = (a.kv_heads, a.heads // a.kv_heads, a.head_dim)
        read, held = (of.reshape(heads).max(axis=1) for of in (read, held))
        read, held = (np.repeat(of[:, None], heads[1], axis=1).reshape(-1) for of in (read, held))
    read, held = (np.maximum(of, max(float(of.max()) * 1e-5, 1e-30)) for of in (read, held))
    for alpha in ALPHAS:
        log = alpha * np.log2(read) - (1 - alpha) * np.log2(held)
        yield np.exp2(np.rint(log - np.median(log))).astype(np.float32)
