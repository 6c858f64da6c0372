"""A model over a few texts, layer by layer: whatever its size, no more than one layer is in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from millrace.convert.architecture import Architecture
from millrace.convert.graph import Graph, Store
from millrace.convert.network import Linear, Network, Plan, Side, head_name
from millrace.convert.runtime import ort, session
from millrace.convert.safetensors import Weights

Floats = npt.NDArray[np.float32]
Texts = tuple[list[int], ...]

BLOCK = 1 << 23  # weights of the head that are looked at at once


@dataclass(frozen=True)
class Seen:
    """What one layer showed of one text: keys and values, and what each of its linear layers read."""

    keys: Floats  # [kv_heads, tokens, head_dim]
    values: Floats
    linears: list[tuple[Linear, Floats]]


class Planned:
    """As a plan has it, in the weights that the model's graphs will have: `store` receives them."""

    def __init__(self, a: Architecture, weights: Weights, plan: Plan, texts: Texts, store: Store):
        self._a = a
        self._weights = weights
        self._plan = plan
        self._store = store
        self.states = embedded(a, weights, texts)

    def layer(self, i: int) -> None:
        found = _layer(self._a, self._weights, self._plan, i, self._store, self.states)
        self.states = [y for y, _ in found]

    def logits(self, text: int) -> Iterator[Floats]:
        """Of a text, some tokens at a time."""
        g = Graph("head", self._store)
        net = Network(g, self._a, self._weights, self._plan)
        net.logits(g.input("x", np.float32, ["wanted", self._a.hidden]), "")
        head = opened(g, self._store)
        for some in portions(self._a, self.states[text]):
            yield head.run(["logits"], {"x": some})[0]


class Exact:
    """In fp32, as the checkpoint has it; `scratch` is a file that may be overwritten."""

    def __init__(self, a: Architecture, weights: Weights, texts: Texts, scratch: Path):
        self._a = a
        self._weights = weights
        self._scratch = scratch
        self.states = embedded(a, weights, texts)

    def layer(self, i: int) -> list[Seen]:
        with Store(self._scratch) as store:
            found = _layer(self._a, self._weights, Plan("fp32"), i, store, self.states)
        self.states = [y for y, _ in found]
        return [seen for _, seen in found]

    def head(self) -> tuple[Linear, list[Floats]]:
        """The head, and what it reads of each text."""
        a, weights, name = self._a, self._weights, f"{head_name(self._a)}.weight"
        with Store(self._scratch) as store:
            g = Graph("norm", store)
            x = g.input("x", np.float32, ["tokens", a.hidden])
            normed, _ = Network(g, a, weights, Plan("fp32")).norm("model.norm", x, "")
            g.output(normed, np.float32, ["tokens", a.hidden])
            norm = opened(g, store)
        linear = Linear("lm_head", normed, a.hidden, a.vocab, lambda: weights.get(name, a.vocab, a.hidden))
        return linear, [norm.run([normed], {"x": states})[0] for states in self.states]

    def logits(self, read: Floats) -> Iterator[Floats]:
        """Some tokens at a time. The head may be larger than all layers, and is never whole in fp32."""
        a = self._a
        step = max(1, BLOCK // a.hidden)
        for some in portions(a, read):
            made = np.empty((len(some), a.vocab), np.float32)
            for at in range(0, a.vocab, step):
                words = slice(at, at + step)
                block = self._weights.get(f"{head_name(a)}.weight", a.vocab, a.hidden, rows=words)
                made[:, words] = some @ block.T
            yield np.tanh(made / a.logit_cap) * np.float32(a.logit_cap) if a.logit_cap else made


def embedded(a: Architecture, weights: Weights, texts: Texts) -> list[Floats]:
    def look_up(tokens: list[int]) -> Floats:
        return weights.get("model.embed_tokens.weight", a.vocab, a.hidden, rows=tokens)

    return [look_up(tokens) * np.float32(a.embed_scale) for tokens in texts]


def portions(a: Architecture, states: Floats) -> list[Floats]:
    """Rows whose logits take some hundred megabytes."""
    step = max(1, (1 << 25) // a.vocab)
    return [states[at : at + step] for at in range(0, len(states), step)]


def opened(g: Graph, store: Store) -> ort.InferenceSession:
    store.flush()
    return session(g.model().SerializeToString(), folder=store.path.parent)


def _layer(
    a: Architecture, weights: Weights, plan: Plan, i: int, store: Store, states: list[Floats]
) -> list[tuple[Floats, Seen]]:
    g = Graph(f"layer {i}", store)
    net = Network(g, a, weights, plan)
    side = Side(g.input("before", np.int32, [1]), g.input("longest", np.int32, []), 1, -1, "")
    residual, delta = net.layer(i, g.input("x", np.float32, [1, "tokens", a.hidden]), "", {"chunk": side})
    g.node("Add", residual, delta, named=("y",))
    g.output("y", np.float32, [1, "tokens", a.hidden])
    for linear in net.linears:
        g.output(linear.input, np.float32, [1, "tokens", linear.k])
    run = opened(g, store)
    found = []
    for x in states:
        empty = np.zeros((1, a.kv_heads, len(x), a.head_dim), np.int8 if plan.scales else np.float32)
        y, keys, values, *inputs = run.run(
            ["y", f"chunk.k.{i}.out", f"chunk.v.{i}.out", *(linear.input for linear in net.linears)],
            {
                "x": x[None],
                "before": np.array([len(x) - 1], np.int32),
                "longest": np.array(len(x), np.int32),
                f"chunk.k.{i}": empty,
                f"chunk.v.{i}": empty,
            },
        )
        read = [(linear, given[0]) for linear, given in zip(net.linears, inputs, strict=True)]
        found.append((y[0], Seen(keys[0], values[0], read)))
    return found
