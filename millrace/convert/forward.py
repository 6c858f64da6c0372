"""A model over a few texts, layer by layer: whatever its size, no more than one layer is in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from millrace.convert import computable
from millrace.convert.architecture import Architecture
from millrace.convert.graph import Graph, Store
from millrace.convert.linear import widened
from millrace.convert.network import Linear, Network, Plan, Side, head_name
from millrace.convert.runtime import ort, session
from millrace.convert.safetensors import Weights

Floats = npt.NDArray[np.float32]
Texts = tuple[list[int], ...]

BLOCK = 1 << 23  # weights of the head that are looked at at once


@dataclass(frozen=True)
class Seen:
    """What one layer showed of one text: keys and values, and what each of its linear layers read.

    What a linear layer writes to the residual stream, alone, matters as a part of the stream behind it.
    """

    keys: Floats  # [kv_heads, tokens, head_dim]
    values: Floats
    linears: list[tuple[Linear, Floats]]
    streams: dict[str, Floats]


State = tuple[Floats, Floats | None]
"""A text between two layers: the residual stream, and what is yet to be added to it."""


class Planned:
    """As a plan has it, in the weights that the model's graphs will have: `store` receives them."""

    def __init__(self, a: Architecture, weights: Weights, plan: Plan, texts: Texts, store: Store):
        self._a = a
        self._weights = weights
        self._plan = plan
        self._store = store
        self._states: list[State] = [
            (x.astype(plan.words).astype(np.float32) * np.float32(a.embed_scale), None)
            for x in embedded(a, weights, texts)
        ]

    def layer(self, i: int) -> None:
        found = _layer(self._a, self._weights, self._plan, i, self._store, self._states)
        self._states = [state for state, _ in found]

    def logits(self, text: int) -> Iterator[Floats]:
        """Of a text, some tokens at a time."""
        return self._head(text, "logits", Network.logits)

    def states(self, text: int) -> Floats:
        """The same of a model without a head: what its vectors are made of."""
        return np.concatenate(list(self._head(text, "states", Network.states)))

    def _head(self, text: int, result: str, build: Callable[[Network, str, str], None]) -> Iterator[Floats]:
        g = Graph("head", self._store)
        net = Network(g, self._a, self._weights, self._plan)
        build(net, *(g.input(name, np.float32, ["wanted", self._a.hidden]) for name in ("x", "delta")))
        head = opened(g, self._store)
        x, delta = self._states[text]
        assert delta is not None
        for rows in portions(self._a.vocab, len(x)):
            yield head.run([result], {"x": x[rows], "delta": delta[rows]})[0]


class Exact:
    """In fp32, as the checkpoint has it; `scratch` is a file that may be overwritten."""

    def __init__(self, a: Architecture, weights: Weights, texts: Texts, scratch: Path):
        self._a = a
        self._weights = weights
        self._scratch = scratch
        self._states: list[State] = [
            (x * np.float32(a.embed_scale), None) for x in embedded(a, weights, texts)
        ]

    def layer(self, i: int) -> list[Seen]:
        with Store(self._scratch) as store:
            found = _layer(self._a, self._weights, Plan("fp32"), i, store, self._states)
        self._states = [state for state, _ in found]
        return [seen for _, seen in found]

    def head(self) -> tuple[Linear, list[Floats]]:
        """The head, and what it reads of each text."""
        a, weights, name = self._a, self._weights, f"{head_name(self._a)}.weight"
        with Store(self._scratch) as store:
            g = Graph("norm", store)
            x, delta = (g.input(part, np.float32, ["tokens", a.hidden]) for part in ("x", "delta"))
            normed, _ = Network(g, a, weights, Plan("fp32")).norm("model.norm", x, delta)
            g.output(normed, np.float32, ["tokens", a.hidden])
            norm = opened(g, store)
        linear = Linear("lm_head", normed, a.hidden, a.vocab, lambda: weights.get(name, a.vocab, a.hidden))
        return linear, [norm.run([normed], {"x": x, "delta": delta})[0] for x, delta in self._states]

    def logits(self, read: Floats) -> Iterator[Floats]:
        """Some tokens at a time. The head may be larger than all layers, and is never whole in fp32."""
        a = self._a
        step = max(1, BLOCK // a.hidden)
        for rows in portions(a.vocab, len(read)):
            some = read[rows]
            made = np.empty((len(some), a.vocab), np.float32)
            for at in range(0, a.vocab, step):
                words = slice(at, at + step)
                block = self._weights.get(f"{head_name(a)}.weight", a.vocab, a.hidden, rows=words)
                made[:, words] = some @ block.T
            yield np.tanh(made / a.logit_cap) * np.float32(a.logit_cap) if a.logit_cap else made


def embedded(a: Architecture, weights: Weights, texts: Texts) -> list[Floats]:
    return [weights.get("model.embed_tokens.weight", a.vocab, a.hidden, rows=tokens) for tokens in texts]


def portions(vocab: int, tokens: int) -> list[slice]:
    """Tokens whose logits take at most some hundred megabytes."""
    step = max(1, min(256, (1 << 25) // vocab))
    return [slice(at, at + step) for at in range(0, tokens, step)]


def opened(g: Graph, store: Store) -> ort.InferenceSession:
    store.flush()
    return session(computable.computable(g.model()).SerializeToString(), folder=store.path.parent)


def _layer(
    a: Architecture, weights: Weights, plan: Plan, i: int, store: Store, states: list[State]
) -> list[tuple[State, Seen]]:
    g = Graph(f"layer {i}", store)
    net = Network(g, a, weights, plan)
    shape: list[int | str] = [1, "tokens", a.hidden]
    side = Side(g.input("before", np.int32, [1]), g.input("longest", np.int32, []), 1, -1, "")
    before = [g.input(name, np.float32, shape) for name in (("x", "delta") if i else ("x",))]
    after = net.layer(i, before[0], before[1] if i else "", {"chunk": side})
    results = [*after, *(widened(g, linear.input) for linear in net.linears)]
    for name, width in zip(results, [a.hidden, a.hidden, *(linear.k for linear in net.linears)], strict=True):
        g.output(name, np.float32, [1, "tokens", width])
    layer = opened(g, store)
    found = []
    for state in states:
        count = len(state[0])
        empty = np.zeros((1, a.kv_heads, count, a.head_dim), plan.cache)
        x, delta, *inputs, keys, values = computable.run(
            layer,
            [*results, f"chunk.k.{i}.out", f"chunk.v.{i}.out"],
            {
                **{name: part[None] for name, part in zip(before, state, strict=False) if part is not None},
                "before": np.array([count - 1], np.int32),
                "longest": np.array(count, np.int32),
                f"chunk.k.{i}": empty,
                f"chunk.v.{i}": empty,
            },
        )
        read = [(linear, given[0]) for linear, given in zip(net.linears, inputs, strict=True)]
        at = f"model.layers.{i}"
        streams = {f"{at}.self_attn.o_proj": x[0], f"{at}.mlp.down_proj": x[0] + delta[0]}
        found.append(((x[0], delta[0]), Seen(keys[0], values[0], read, {} if a.norms_behind else streams)))
    return found
