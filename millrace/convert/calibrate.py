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
COARSE = 1e-3  # rounding noise, as a share of what varies, above which every channel gets its own scale


def scales(
    a: Architecture, weights: Weights, tokens: list[int], step: Callable[[str], object]
) -> list[Scales]:
    found = []
    x = weights.get("model.embed_tokens.weight", a.vocab, a.hidden)[tokens] * np.float32(a.embed_scale)
    for i in range(len(a.layers)):
        step(f"calibrating layer {i + 1}")
        x, keys, values = run_layer(a, weights, i, x)
        found.append(Scales(scale_of(keys), scale_of(values)))
    return found


def run_layer(a: Architecture, weights: Weights, i: int, x: Floats) -> tuple[Floats, Floats, Floats]:
    """A layer in fp32 over one text: its output, and its keys and values, [kv_heads, tokens, head_dim]."""
    g = Graph(f"layer {i}", Inline())
    net = Network(g, a, weights, Plan(lambda name: "fp32", []))
    side = Side(g.input("before", np.int32, [1]), g.input("longest", np.int32, []), g.constant([0], np.int64))
    residual, delta = net.layer(i, g.input("x", np.float32, ["tokens", a.hidden]), "", {"chunk": side})
    g.node("Add", residual, delta, named=("y",))
    g.output("y", np.float32, ["tokens", a.hidden])
    count = len(x)
    empty = np.zeros((1, a.kv_heads, count, a.head_dim), np.float32)
    y, keys, values = session(g.model().SerializeToString()).run(
        ["y", f"chunk.k.{i}.out", f"chunk.v.{i}.out"],
        {
            "x": x,
            "before": np.array([count - 1], np.int32),
            "longest": np.array(count, np.int32),
            f"chunk.k.{i}": empty,
            f"chunk.v.{i}": empty,
        },
    )
    return y, keys[0], values[0]


def scale_of(seen: Floats) -> Floats:
    """One scale for all, unless a few channels are so large that the others would drown in rounding."""
    by_channel = np.abs(seen).max(axis=1)  # [kv_heads, head_dim]
    one = max(float(by_channel.max()), 1e-6) * MARGIN / 127
    noise = one**2 / 12
    varies = float(seen.var(axis=1, dtype=np.float64).mean())
    if noise <= COARSE * varies:
        return np.array([one], np.float32)
    # A channel without any signal is not worth a finer step than its neighbours' average.
    floor = float(by_channel.mean()) * 1e-2 + 1e-6
    each: Floats = (np.maximum(by_channel, floor) * MARGIN / 127).astype(np.float32)
    return each[None, :, None, :]
