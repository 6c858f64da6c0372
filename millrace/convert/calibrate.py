"""What values a model's keys and values take on ordinary text: from that follow the scales of an 8-bit cache.

The layers run one after another through their own fp32 graphs, so that no more than one layer is ever
held in fp32, and the graph is the one that the engine runs, in other arithmetic.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from millrace.convert.architecture import Architecture
from millrace.convert.graph import Graph, Inline
from millrace.convert.network import Network, Plan, Scales, Side
from millrace.convert.runtime import session
from millrace.convert.safetensors import Weights

Floats = npt.NDArray[np.float32]

MARGIN = 1.1  # beyond the largest value seen: what lies above is cut off
COARSE = 1e-3  # rounding noise, as a share of a middling channel's variance, above which each gets a scale


def scales(
    a: Architecture, weights: Weights, tokens: list[int], step: Callable[[str], object]
) -> list[Scales]:
    found = []
    x = weights.get("model.embed_tokens.weight", a.vocab, a.hidden)[tokens] * np.float32(a.embed_scale)
    for i in range(len(a.layers)):
        step(f"calibrating layer {i + 1}")
        x, keys, values = run_layer(a, weights, i, x)
        by_channel = coarse(keys) or coarse(values)
        found.append(Scales(steps(keys, by_channel=by_channel), steps(values, by_channel=by_channel)))
    return found


def run_layer(a: Architecture, weights: Weights, i: int, x: Floats) -> tuple[Floats, Floats, Floats]:
    """A layer in fp32 over one text: its output, and its keys and values, [kv_heads, tokens, head_dim]."""
    g = Graph(f"layer {i}", Inline())
    net = Network(g, a, weights, Plan(lambda name: "fp32", []))
    side = Side(g.input("before", np.int32, [1]), g.input("longest", np.int32, []), 1, -1, "")
    residual, delta = net.layer(i, g.input("x", np.float32, [1, "tokens", a.hidden]), "", {"chunk": side})
    g.node("Add", residual, delta, named=("y",))
    g.output("y", np.float32, [1, "tokens", a.hidden])
    count = len(x)
    empty = np.zeros((1, a.kv_heads, count, a.head_dim), np.float32)
    y, keys, values = session(g.model().SerializeToString()).run(
        ["y", f"chunk.k.{i}.out", f"chunk.v.{i}.out"],
        {
            "x": x[None],
            "before": np.array([count - 1], np.int32),
            "longest": np.array(count, np.int32),
            f"chunk.k.{i}": empty,
            f"chunk.v.{i}": empty,
        },
    )
    return y[0], keys[0], values[0]


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
