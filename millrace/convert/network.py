"""The graph of a model: written once, for all families, all quantisations and all forms of a step.

A step has one token of each decoding sequence, its rows, and several tokens of one prompt, its chunk.
Linear layers see them all at once, [rows + chunk, channels]; attention alone tells them apart, since a row
looks at its own slot and the chunk at one. A form without rows, or without a chunk, leaves that side out,
and has the shape of attention all along: [rows, 1, channels], or [1, chunk, channels].
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from millrace.convert import linear, packed
from millrace.convert.architecture import Architecture, Layer, Rope
from millrace.convert.graph import CONTRIB, Graph
from millrace.convert.linear import KERNELS
from millrace.convert.packed import Codes, Packed
from millrace.convert.safetensors import Weights

Floats = npt.NDArray[np.float32]

CANDIDATES = 64
FLAT_VOCABULARY = 4096  # up to here one TopK over all words is as fast as two levels


class Form(Enum):
    """Which sides a graph's step has, and whether any of its rows is asked for the next token."""

    ROWS = "rows"
    CHUNK = "chunk"
    MIXED = "mixed"
    FILL = "fill"  # a chunk of which only the keys and values are wanted

    @property
    def sides(self) -> tuple[str, ...]:
        return {"rows": ("rows",), "mixed": ("rows", "chunk")}.get(self.value, ("chunk",))


@dataclass(frozen=True)
class Scales:
    """What one step of a layer's 8-bit keys and values is worth: one number, or one a channel."""

    keys: Floats
    values: Floats

    @property
    def attributes(self) -> dict[str, str | int]:
        assert self.keys.size == self.values.size, "ONNX Runtime wants the same kind for both"
        kind = "PER_TENSOR" if self.keys.size == 1 else "PER_CHANNEL"
        return {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": 8}


@dataclass
class Plan:
    """How a model is computed. Conversion fills it in layer by layer."""

    kernel: str  # of the linear layers that `kernels` does not name
    kernels: dict[str, str] = field(default_factory=dict)
    scales: list[Scales] = field(default_factory=list)  # one a layer; none: keys and values stay fp32
    packed: bool = False  # layers that came in 4 bits keep them, and nothing is folded into any layer
    half: type[np.generic] | None = None
    """For a GPU: of 16 bits, what attention, keys and values are in; the stream between layers has 32."""
    smooth: dict[str, Floats] = field(default_factory=dict)
    """What an input channel of a linear layer is divided by, and its weights are multiplied with.

    The division costs nothing: it is done to the weights of whatever comes before.
    """

    @property
    def cache(self) -> type[np.generic]:
        """What keys and values are kept as."""
        return self.half or (np.int8 if self.scales else np.float32)

    @property
    def words(self) -> type[np.generic]:
        """What the table of words is kept as."""
        return self.half or np.float16


@dataclass(frozen=True)
class Linear:
    """One that is in the graph: where its input is found there, and its weights [out, in]."""

    name: str
    input: str
    k: int
    n: int
    weights: Callable[[], Floats]
    packed: bool = False  # whether they came in 4 bits


@dataclass(frozen=True)
class Side:
    before: str  # for each slot, the tokens it holds after the step, less one
    longest: str  # the most tokens that any of the slots holds after it
    slots: int  # rows are many slots, -1, with one token; a chunk is one slot with many
    tokens: int
    axis: str  # the one of these dimensions that is one


class Network:
    def __init__(self, graph: Graph, a: Architecture, weights: Weights, plan: Plan):
        self.g = graph
        self.a = a
        self._weights = weights
        self._plan = plan
        self.linears: list[Linear] = []

    # -- a whole model

    def build(self, form: Form) -> None:
        g, a = self.g, self.a
        x, delta = self.embed(g.input("tokens", np.int64, ["tokens"])), ""
        sides = self._sides(form)
        axis = next(iter(sides.values())).axis if len(sides) == 1 else ""
        x = g.node("Unsqueeze", x, axis) if axis else x
        last = len(a.layers) - 1
        for i in range(len(a.layers)):
            if form is Form.FILL and i == last:
                self.attention(i, x, delta, sides)
            else:
                x, delta = self.layer(i, x, delta, sides)
        if form is not Form.FILL:
            if axis:
                x, delta = g.node("Squeeze", x, axis), g.node("Squeeze", delta, axis)
            self.head(x, delta, g.input("wanted", np.int64, ["wanted"]))

    def _sides(self, form: Form) -> dict[str, Side]:
        g = self.g
        if form is Form.MIXED:
            g.input("split", np.int64, [2])
        return {
            side: Side(
                g.input(f"{side}.before", np.int32, [side]),
                g.input(f"{side}.longest", np.int32, []),
                *((1, -1) if side == "chunk" else (-1, 1)),
                g.constant([0 if side == "chunk" else 1], np.int64),
            )
            for side in form.sides
        }

    def embed(self, tokens: str) -> str:
        """Looked up in 16 bits, in place in the mapped file: an fp32 copy would double a small model."""
        g, a = self.g, self.a
        table = g.weight(
            "embed",
            lambda: self._get("model.embed_tokens.weight", a.vocab, a.hidden).astype(self._plan.words),
        )
        x = g.node("Cast", g.node("Gather", table, tokens, axis=0), to=1)
        return x if a.embed_scale == 1 else g.node("Mul", x, g.constant(a.embed_scale, np.float32))

    def head(self, x: str, delta: str, wanted: str) -> None:
        """Logits and the likeliest tokens, or the last layer's states, of the wanted rows alone."""
        g = self.g
        x, delta = g.node("Gather", x, wanted, axis=0), g.node("Gather", delta, wanted, axis=0)
        if self.a.vectors:
            self.states(x, delta)
        else:
            self.logits(x, delta)
            self._candidates("logits")

    def states(self, x: str, delta: str) -> None:
        """What a vector is made of. It may take tokens of several steps, so the engine makes it."""
        normed, _ = self.norm("model.norm", x, delta)
        self.g.node("Identity", normed, named=("states",))
        self.g.output("states", np.float32, ["wanted", self.a.hidden])

    def logits(self, x: str, delta: str) -> None:
        g, a = self.g, self.a
        x, _ = self.norm("model.norm", x, delta, "lm_head")
        logits = self.linear("lm_head", x, a.hidden, a.vocab, stored=head_name(a))
        if a.logit_cap:
            cap = g.constant(a.logit_cap, np.float32)
            logits = g.node("Mul", g.node("Tanh", g.node("Div", logits, cap)), cap)
        g.call(logits, "logits")
        g.output("logits", np.float32, ["wanted", a.vocab])

    def _candidates(self, logits: str) -> None:
        """The best tokens, best first, equals in ascending order of id.

        Of many words, the best blocks are found first: the best tokens are all in as many best blocks.
        """
        g, a = self.g, self.a
        k = min(CANDIDATES, a.vocab)
        count = g.constant([k], np.int64)
        block = _block(a.vocab)
        if block:
            blocks = g.node("Reshape", logits, g.constant([0, -1, block], np.int64))
            chosen = g.nodes("TopK", self._greatest(blocks), count, outputs=2, axis=-1)[1]
            # In ascending order, so that equal logits stay in the order of their ids.
            chosen = g.node("TopK", chosen, count, outputs=2, axis=-1, largest=0)
            near = g.node(
                "GatherND", blocks, g.node("Unsqueeze", chosen, g.constant([2], np.int64)), batch_dims=1
            )
            near = g.node("Reshape", near, g.constant([0, k * block], np.int64))
            _, at = g.nodes("TopK", near, count, outputs=2, axis=-1, named=("best", "best.near"))
            size = g.constant(block, np.int64)
            which = g.node("GatherElements", chosen, g.node("Div", at, size), axis=1)
            inside = g.node("Mod", at, size)
            g.node("Add", g.node("Mul", which, size), inside, named=("ids",))
        else:
            g.nodes("TopK", logits, count, outputs=2, axis=-1, named=("best", "ids"))
        g.output("best", np.float32, ["wanted", k])
        g.output("ids", np.int64, ["wanted", k])

    def _greatest(self, blocks: str) -> str:
        """Of each block. A GPU's ReduceMax would be cuDNN's, which nothing else here needs."""
        g, axis = self.g, self.g.constant([2], np.int64)
        if not self._plan.half:
            return g.node("ReduceMax", blocks, axis, keepdims=0)
        first, _ = g.nodes("TopK", blocks, g.constant([1], np.int64), outputs=2, axis=-1)
        return g.node("Squeeze", first, axis)

    # -- one layer

    def layer(self, i: int, x: str, delta: str, sides: dict[str, Side]) -> tuple[str, str]:
        """The residual stream comes as a sum not yet taken: each norm adds and norms in one operator."""
        a, at = self.a, f"model.layers.{i}"
        attended, x = self.attention(i, x, delta, sides)
        delta = self.linear(f"{at}.self_attn.o_proj", attended, a.q_dim, a.hidden, bias=a.out_bias)
        if a.norms_behind:
            delta, _ = self.norm(f"{at}.post_attention_layernorm", delta, "")
        normed, x = self.norm(f"{at}.{a.norm_before_mlp}", x, delta, f"{at}.mlp.gate_up_proj")
        delta = self._mlp(at, normed)
        if a.norms_behind:
            delta, _ = self.norm(f"{at}.post_feedforward_layernorm", delta, "")
        return x, delta

    def attention(self, i: int, x: str, delta: str, sides: dict[str, Side]) -> tuple[str, str]:
        """What the heads gather, and the residual stream."""
        at = f"model.layers.{i}"
        normed, x = self.norm(f"{at}.input_layernorm", x, delta, f"{at}.self_attn.qkv_proj")
        return self._attention(i, self._qkv(at, normed, sides), sides), x

    def norm(self, name: str, x: str, delta: str, into: str = "") -> tuple[str, str]:
        """RMS norm of x + delta, and that sum; `into`: the one linear layer that reads it."""
        g, a = self.g, self.a

        def gains() -> Floats:
            stored = self._get(f"{name}.weight", a.hidden) + np.float32(a.norm_offset)
            return stored / self._plan.smooth.get(into, np.float32(1))

        gain = g.weight(name, gains)
        if not delta:
            return g.node("SimplifiedLayerNormalization", x, gain, epsilon=a.eps, axis=-1), x
        normed, _, _, total = g.nodes(
            "SkipSimplifiedLayerNormalization", x, delta, gain, outputs=4, domain=CONTRIB, epsilon=a.eps
        )
        return normed, total

    def _qkv(self, at: str, x: str, sides: dict[str, Side]) -> str:
        g, a = self.g, self.a
        parts = [("q", a.q_dim), ("k", a.kv_dim), ("v", a.kv_dim)]
        smooth = self._plan.smooth.get(f"{at}.self_attn.o_proj")
        if smooth is not None:  # the heads that share a value share its factors
            smooth = smooth.reshape(a.kv_heads, -1, a.head_dim)[:, 0].reshape(-1)
        qkv = self._several(f"{at}.self_attn", "qkv_proj", parts, x, a.hidden, bias=a.qkv_bias, last=smooth)
        if self._plan.half:
            return linear.halved(g, qkv, self._plan.half)  # heads are normed by attention itself
        if not a.head_norms:
            return qkv
        # q and k are normed by one operator: its gain has a row for each of their heads.
        count, d = a.heads + a.kv_heads, a.head_dim

        def gains() -> Floats:
            q, k = self._head_gain(at, "q"), self._head_gain(at, "k")
            return np.concatenate([np.tile(q, (a.heads, 1)), np.tile(k, (a.kv_heads, 1))])[None]

        by_head = g.node("Reshape", qkv, g.constant([-1, count + a.kv_heads, d], np.int64))
        qk, v = g.nodes("Split", by_head, g.constant([count, a.kv_heads], np.int64), outputs=2, axis=1)
        gain = g.weight(f"{at}.self_attn.qk_norm", gains)
        qk = g.node("SimplifiedLayerNormalization", qk, gain, epsilon=a.eps, axis=-1)
        shape = [-1, a.qkv_dim]
        if len(sides) == 1:
            (side,) = sides.values()
            shape = [side.slots, side.tokens, a.qkv_dim]
        return g.node("Reshape", g.node("Concat", qk, v, axis=1), g.constant(shape, np.int64))

    def _head_gain(self, at: str, part: str) -> Floats:
        stored = self._get(f"{at}.self_attn.{part}_norm.weight", self.a.head_dim)
        return stored + np.float32(self.a.norm_offset)

    def _attention(self, i: int, qkv: str, sides: dict[str, Side]) -> str:
        g = self.g
        if len(sides) == 1:
            ((name, side),) = sides.items()
            return self._attend(i, qkv, name, side)
        parts = g.nodes("Split", qkv, "split", outputs=2, axis=0)
        attended = []
        for part, (name, side) in zip(parts, sides.items(), strict=True):
            one = self._attend(i, g.node("Unsqueeze", part, side.axis), name, side)
            attended.append(g.node("Squeeze", one, side.axis))
        return g.node("Concat", *attended, axis=0)

    def _attend(self, i: int, qkv: str, name: str, side: "Side") -> str:
        """One side's attention, which also writes its keys and values in place, behind those of before."""
        g, a, layer = self.g, self.a, self.a.layers[i]
        scales = self._plan.scales[i] if self._plan.scales else None
        half = self._plan.half
        kind = self._plan.cache
        shape: list[int | str] = [f"{name}.slots", a.kv_heads, "max_len", a.head_dim]
        past = [g.input(f"{name}.{kv}.{i}", kind, shape) for kv in "kv"]
        present = tuple(f"{name}.{kv}.{i}.out" for kv in "kv")
        inputs = [qkv, "", "", *past, side.before, side.longest]
        inputs += [*(self._rope(layer.rope) if layer.rope else ("", "")), "", "", ""]
        norms: dict[str, float] = {}
        if scales:
            inputs += [g.weight(f"k_scale.{i}", lambda: scales.keys)]
            inputs += [g.weight(f"v_scale.{i}", lambda: scales.values)]
        if half and a.head_norms:
            inputs += ["", "", *(self._half_gain(f"model.layers.{i}", part, half) for part in "qk")]
            norms["qk_norm_epsilon"] = a.eps
        out, *_ = g.nodes(
            "GroupQueryAttention",
            *inputs,
            outputs=3,
            named=present,
            domain=CONTRIB,
            num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            scale=float(a.scale),
            softcap=float(a.attention_cap),
            do_rotary=int(layer.rope is not None),
            local_window_size=_window(layer),
            **(scales.attributes if scales else {}),
            **norms,
        )
        for each in present:
            g.output(each, kind, shape)
        return linear.widened(g, out) if half else out

    def _half_gain(self, at: str, part: str, half: type[np.generic]) -> str:
        return self.g.weight(f"{at}.self_attn.{part}_norm", lambda: self._head_gain(at, part).astype(half))

    def _rope(self, rope: Rope) -> tuple[str, str]:
        g, kinds = self.g, sorted({repr(layer.rope) for layer in self.a.layers})
        n = kinds.index(repr(rope))
        length = self.a.max_len
        bits = self._plan.half or np.float32
        return (
            g.weight(f"cos.{n}", lambda: rope.tables(length)[0].astype(bits)),
            g.weight(f"sin.{n}", lambda: rope.tables(length)[1].astype(bits)),
        )

    def _mlp(self, at: str, x: str) -> str:
        g, a = self.g, self.a
        parts = [("gate", a.inner), ("up", a.inner)]
        smooth = self._plan.smooth.get(f"{at}.mlp.down_proj")
        both = self._several(f"{at}.mlp", "gate_up_proj", parts, x, a.hidden, bias=a.mlp_bias, last=smooth)
        half = self._plan.half
        if half and not a.gelu:  # what comes and goes in 16 bits need not be written in 32 between
            both = linear.halved(g, both, half)
        gate, up = g.nodes("Split", both, outputs=2, axis=-1, num_outputs=2)
        if a.gelu:
            act = g.node("Gelu", gate, approximate="tanh")
        elif half:
            act = g.contrib("ScaledSiLU", gate)  # reckons in 32 bits; QuickGelu would not
        else:
            act = g.contrib("QuickGelu", gate, alpha=1.0)  # which is SiLU
        return self.linear(f"{at}.mlp.down_proj", g.node("Mul", act, up), a.inner, a.hidden, bias=a.mlp_bias)

    # -- linear layers

    def linear(self, name: str, x: str, k: int, n: int, *, bias: bool = False, stored: str = "") -> str:
        return self._apply(name, x, k, {stored or name: n}, bias=bias)

    def _several(
        self,
        at: str,
        joined: str,
        parts: list[tuple[str, int]],
        x: str,
        k: int,
        *,
        bias: bool,
        last: Floats | None,
    ) -> str:
        """Layers with the same input are computed as one, and stored as one by some families.

        `last`: what the last one's outputs are divided by, for the sake of the layer that reads them.
        """
        stored = {f"{at}.{part}_proj": size for part, size in parts}
        if self.a.joined:
            stored = {f"{at}.{joined}": sum(stored.values())}
        return self._apply(f"{at}.{joined}", x, k, stored, bias=bias, last=last)

    def _apply(
        self, name: str, x: str, k: int, stored: dict[str, int], *, bias: bool, last: Floats | None = None
    ) -> str:
        """`stored`: as what, and with how many outputs each."""
        plan, n = self._plan, sum(stored.values())

        def get(kind: str, *shape: int) -> Floats:
            made = np.concatenate(
                [self._get(f"{each}.{kind}", size, *shape) for each, size in stored.items()]
            )
            if last is not None:
                made[-len(last) :] /= last.reshape(-1, *(1 for _ in shape))
            return made

        def weights() -> Floats:
            return get("weight", k)

        def smoothed() -> Floats:
            return weights() * plan.smooth[name] if name in plan.smooth else weights()

        codes = self._codes(stored, k)
        self.linears.append(Linear(name, x, k, n, weights, packed=codes is not None))
        if codes and plan.packed and name not in plan.kernels:
            y = linear.packed(self.g, x, name, k, n, codes, half=plan.half is not None)
        else:
            y = KERNELS[plan.kernels.get(name, plan.kernel)](self.g, x, name, k, n, smoothed)
        if bias:
            return self.g.node("Add", y, self.g.weight(f"{name}.bias", lambda: get("bias")))
        for each, size in stored.items():  # some programs store biases of zero
            if f"{each}.bias" in self._weights and self._get(f"{each}.bias", size).any():
                raise ValueError(f"{each}.bias is there, but config.json speaks of none")
        return y

    def _codes(self, stored: dict[str, int], k: int) -> Codes | None:
        """Where all of these are in 4 bits."""
        if not isinstance(self._weights, Packed):
            return None
        found = {name: self._weights.codes(name, n, k) for name, n in stored.items()}
        whole = {name: codes for name, codes in found.items() if codes}
        return packed.joined(whole) if len(whole) == len(found) else None

    def _get(self, name: str, *shape: int) -> Floats:
        return self._weights.get(name, *shape)


def head_name(a: Architecture) -> str:
    """What the weights of the head are stored as."""
    return "model.embed_tokens" if a.tied else "lm_head"


def _window(layer: Layer) -> int:
    """ONNX Runtime counts the tokens a token sees as Transformers does, itself included; -1 is all."""
    return layer.window or -1


def _block(vocab: int) -> int:
    """Words a block, for the two-level choice; 0 where one level does."""
    if vocab <= FLAT_VOCABULARY:
        return 0
    fitting = [n for n in range(64, 513) if vocab % n == 0]
    return min(fitting, key=lambda n: abs(n - 128), default=0)
