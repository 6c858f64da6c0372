"""What a config.json says of a model, in our words. The families differ here, and nowhere else by name.

Llama 2 and 3, SmolLM2     the plain form
Mistral                    a sliding window
Qwen2, Qwen2.5             biases on q, k and v
Qwen3                      a norm on each head of q and k
SmolLM3                    no rotary positions in every fourth layer
Phi-3                      q, k, v stored as one; gate and up stored as one
Gemma 2, Gemma 3           norms count from one, and stand behind each block too; GELU; windows in
                           most layers; soft caps (2); a norm on each head, two rotary bases (3)
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.context import context

Config = dict[str, Any]

FULL, SLIDING = "full_attention", "sliding_attention"
"""What a config.json calls layers that see all tokens, and those with a window."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the angle per token of each pair of channels, and what lengthened contexts add."""

    dim: int  # channels of a head that turn
    base: float
    scaling: Config = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return str(self.scaling.get("rope_type", self.scaling.get("type", "default")))

    def tables(self, length: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Cosines and sines, [length, dim / 2]."""
        frequencies, factor = self._frequencies(length)
        angles = np.arange(length, dtype=np.float64)[:, None] * frequencies[None, :]
        return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)

    def _frequencies(self, length: int) -> tuple[npt.NDArray[np.float64], float]:
        plain = self.base ** -(np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
        s = self.scaling
        match self.kind:
            case "default":
                return plain, 1.0
            case "linear":
                return plain / s["factor"], 1.0
            case "llama3":
                # Long waves are stretched, short ones kept, those between blended.
                turns = s["original_max_position_embeddings"] * plain / (2 * math.pi)
                low, high = s["low_freq_factor"], s["high_freq_factor"]
                kept = np.clip((turns - low) / (high - low), 0, 1)
                return plain * (kept + (1 - kept) / s["factor"]), 1.0
            case "yarn":
                original = s["original_max_position_embeddings"]

                def channel(turns: float) -> float:
                    log = math.log(original / (turns * 2 * math.pi))
                    return self.dim * log / (2 * math.log(self.base))

                low, high = channel(s.get("beta_fast") or 32), channel(s.get("beta_slow") or 1)
                if s.get("truncate", True):
                    low, high = math.floor(low), math.ceil(high)
                low, high = max(low, 0), min(high, self.dim - 1)
                kept = 1 - np.clip((np.arange(self.dim // 2) - low) / max(high - low, 0.001), 0, 1)
                log = 0.1 * math.log(max(s["factor"], 1))
                factor = log + 1
                if s.get("mscale") and s.get("mscale_all_dim"):
                    factor = (s["mscale"] * log + 1) / (s["mscale_all_dim"] * log + 1)
                return plain * (kept + (1 - kept) / s["factor"]), float(s.get("attention_factor", factor))
            case "longrope" | "su":  # its first name
                original = s["original_max_position_embeddings"]
                name = "long_factor" if length > original else "short_factor"
                stretch = np.array(s[name], dtype=np.float64)
                if stretch.shape != plain.shape:
                    raise ValueError(f"the {name} of the rope scaling is not a list of {len(plain)} numbers")
                factor = math.sqrt(1 + math.log(max(s["factor"], 1)) / math.log(original))
                return plain / stretch, float(s.get("attention_factor", factor))
            case other:
                raise ValueError(f"rope scaling {other!r} is not supported")


@dataclass(frozen=True)
class Layer:
    """What may change from layer to layer."""

    rope: Rope | None
    window: int = 0  # tokens it sees, itself included; 0: all


@dataclass(frozen=True)
class Architecture:
    family: str
    vocab: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    max_len: int
    eps: float
    tied: bool
    layers: tuple[Layer, ...]
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False  # RMS norms on each head of q and k
    norm_offset: float = 0.0  # added to the stored weights of every norm
    norms_behind: bool = False  # attention and MLP are normed again before the residual takes them
    joined: bool = False  # the checkpoint stores q, k, v as one, and gate, up as one
    gelu: bool = False  # GELU by tanh in place of SiLU
    embed_scale: float = 1.0
    attention_scale: float = 0.0  # 0: 1/sqrt(head_dim)
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    vectors: bool = False  # it has no head: what it says of a text is a vector

    @property
    def scale(self) -> float:
        return self.attention_scale or self.head_dim**-0.5

    @property
    def q_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def qkv_dim(self) -> int:
        return self.q_dim + 2 * self.kv_dim

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of all linear layers; the head is among them, where there is one."""
        layer = [(self.hidden, self.qkv_dim + 2 * self.inner), (self.q_dim, self.hidden)]
        layer.append((self.inner, self.hidden))
        return len(self.layers) * layer + ([] if self.vectors else [(self.hidden, self.vocab)])

    @property
    def linear(self) -> int:
        """Weights of all of them."""
        return sum(k * n for k, n in self.linears)

    @property
    def norm_before_mlp(self) -> str:
        """With norms behind, the name that others give this one belongs to the norm behind attention."""
        return "pre_feedforward_layernorm" if self.norms_behind else "post_attention_layernorm"


def read(config: Config, max_len: int = 0, *, vectors: bool = False) -> Architecture:
    """The architecture of a config.json, its context shortened to `max_len` if that is given. `vectors`: of
    a model that makes them, whose weights may have been stored without a head."""
    names = config.get("architectures") or ["nothing"]
    name = names[0] if isinstance(names, list) and isinstance(names[0], str) else ""
    name = re.sub("Model$", "ForCausalLM", name) if vectors else name
    family = FAMILIES.get(name)
    if family is None:
        only = "; of models that make vectors, only such decoders are supported" if vectors else ""
        raise ValueError(f"the architecture {names[0]!r} is not one of {', '.join(FAMILIES)}{only}")
    if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
        raise ValueError(f"this {name} looks at the tokens behind each too, which is not supported")
    config = ABSENT.get(name, {}) | config
    try:
        made = family(config)
        for rope in {repr(layer.rope): layer.rope for layer in made.layers}.values():
            if rope:
                rope.tables(1)  # says what it lacks
    except KeyError as error:
        raise ValueError(f"config.json does not say {error.args[0]}") from None
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"config.json holds a value of a wrong kind ({error})") from None
    if not 0 <= max_len <= made.max_len:
        raise ValueError(f"max_len is {max_len}, beyond the model's {made.max_len}")
    _check(made)
    return replace(made, max_len=max_len or made.max_len, vectors=vectors)


def _check(a: Architecture) -> None:
    if min(a.vocab, a.hidden, a.inner, a.heads, a.kv_heads, a.head_dim, a.max_len, len(a.layers)) < 1:
        raise ValueError("config.json has a size below one")
    if a.heads % a.kv_heads:
        raise ValueError(f"{a.heads} heads cannot share {a.kv_heads} key-value heads")
    if a.head_dim % 8:
        raise ValueError(f"a head of {a.head_dim} channels is not a multiple of 8")
    for turning in (layer.rope.dim for layer in a.layers if layer.rope):
        if turning % 16 or not 0 < turning <= a.head_dim:  # what ONNX Runtime's attention can turn
            raise ValueError(f"{turning} of a head's {a.head_dim} channels turn, which is not supported")


def _plain(c: Config) -> Architecture:
    """Llama, and what the others have in common with it."""
    activation = c.get("hidden_activation") or c.get("hidden_act") or "silu"
    if activation not in ("silu", "gelu_pytorch_tanh"):
        raise ValueError(f"the activation {activation!r} is not supported")
    heads = int(c["num_attention_heads"])
    head_dim = int(c.get("head_dim") or c["hidden_size"] // heads)
    rope = _rope(c, head_dim)
    return Architecture(
        family=str(c.get("model_type", "llama")),
        vocab=int(c["vocab_size"]),
        hidden=int(c["hidden_size"]),
        inner=int(c["intermediate_size"]),
        heads=heads,
        kv_heads=int(c.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        max_len=context(c),
        eps=float(c["rms_norm_eps"]),
        tied=bool(c.get("tie_word_embeddings", False)),
        layers=(Layer(rope),) * int(c["num_hidden_layers"]),
        qkv_bias=bool(c.get("attention_bias", False)),
        out_bias=bool(c.get("attention_bias", False)),
        mlp_bias=bool(c.get("mlp_bias", False)),
        gelu=activation != "silu",
    )


def _rope(c: Config, head_dim: int) -> Rope:
    # Newer configurations put the base, too, where older ones have only what lengthens a context.
    given: Config = c.get("rope_scaling") or c.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in given.values()):
        raise ValueError("this family has no rope_parameters by kinds of layers, but config.json has")
    scaling: Config = {key: value for key, value in given.items() if value is not None}
    if scaling.get("rope_type", scaling.get("type")) in ("llama3", "yarn", "longrope", "su"):
        longest, said = int(c["max_position_embeddings"]), c.get("original_max_position_embeddings")
        original = said or scaling.get("original_max_position_embeddings") or longest
        scaling = {"factor": longest / original} | scaling | {"original_max_position_embeddings": original}
    all_of_it = c | scaling
    turning = int(head_dim * (all_of_it.get("partial_rotary_factor") or 1.0))
    return Rope(turning, float(all_of_it.get("rope_theta", 10000.0)), scaling)


def _windows(c: Config, a: Architecture, usual: Sequence[str]) -> Architecture:
    """With windows where the configuration says so; `usual`: the kinds of the layers if it says nothing."""
    kinds = c.get("layer_types") or usual
    if len(kinds) != len(a.layers):
        raise ValueError(f"config.json declares {len(kinds)} layer types for {len(a.layers)} layers")
    if unknown := set(kinds) - {FULL, SLIDING}:
        raise ValueError(f"layers of the kind {', '.join(sorted(unknown))} are not supported")
    # Some families' configurations name a window that is not used.
    window = int(c.get("sliding_window") or 0) if c.get("use_sliding_window", True) else 0
    windows = [window if kind == SLIDING else 0 for kind in kinds]
    layers = tuple(replace(layer, window=size) for layer, size in zip(a.layers, windows, strict=True))
    return replace(a, layers=layers)


def _llama(c: Config) -> Architecture:
    a = _plain(c)
    return _windows(c, a, [FULL] * len(a.layers))


def _mistral(c: Config) -> Architecture:
    a = _plain(c)
    return _windows(c, a, [SLIDING] * len(a.layers))


def _qwen2(c: Config) -> Architecture:
    a = replace(_plain(c), qkv_bias=True, out_bias=False)
    return _windows(c, a, [SLIDING if i >= c["max_window_layers"] else FULL for i in range(len(a.layers))])


def _qwen3(c: Config) -> Architecture:
    biased = bool(c.get("attention_bias", False))
    return replace(_qwen2(c), qkv_bias=biased, out_bias=biased, head_norms=True)


def _smollm3(c: Config) -> Architecture:
    a, every = _plain(c), int(c.get("no_rope_layer_interval", 4))
    turning = c.get("no_rope_layers") or [(i + 1) % every != 0 for i in range(len(a.layers))]
    if len(turning) < len(a.layers):
        raise ValueError(f"config.json declares {len(turning)} no_rope_layers for {len(a.layers)} layers")
    layers = tuple(
        replace(e, rope=e.rope if turns else None)
        for e, turns in zip(a.layers, turning[: len(a.layers)], strict=True)
    )
    return _windows(c, replace(a, layers=layers), [FULL if layer.rope else SLIDING for layer in layers])


def _phi3(c: Config) -> Architecture:
    a = _mistral(c)
    kinds = {layer.rope.kind for layer in a.layers if layer.rope}
    if unknown := kinds - {"default", "longrope", "su"}:
        raise ValueError(f"rope scaling {', '.join(map(repr, unknown))} is not supported in this family")
    return replace(a, joined=True)


def _gemma2(c: Config) -> Architecture:
    a = _plain(c)
    return replace(
        _windows(c, a, [FULL if i % 2 else SLIDING for i in range(len(a.layers))]),
        norm_offset=1.0,
        norms_behind=True,
        embed_scale=math.sqrt(a.hidden),
        attention_scale=float(c["query_pre_attn_scalar"]) ** -0.5,
        attention_cap=float(c.get("attn_logit_softcapping") or 0),
        logit_cap=float(c.get("final_logit_softcapping") or 0),
    )


def _gemma3(c: Config) -> Architecture:
    every, by_kind = int(c["sliding_window_pattern"]), c.get("rope_parameters") or {}
    kinds = [SLIDING if (i + 1) % every else FULL for i in range(int(c["num_hidden_layers"]))]
    far = (by_kind.get(FULL, by_kind) or {}) | (c.get("rope_scaling") or {})
    a = _gemma2(
        c | {"layer_types": c.get("layer_types") or kinds, "rope_scaling": far, "rope_parameters": None}
    )
    near = {
        "rope_theta": c["rope_local_base_freq"],
        "rope_parameters": by_kind.get(SLIDING),
        "rope_scaling": None,
    }
    local = _rope(c | near, a.head_dim)
    layers = tuple(replace(layer, rope=local) if layer.window else layer for layer in a.layers)
    return replace(a, layers=layers, head_norms=True)


FAMILIES: dict[str, Callable[[Config], Architecture]] = {
    "LlamaForCausalLM": _llama,  # SmolLM2 too
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "SmolLM3ForCausalLM": _smollm3,
    "Phi3ForCausalLM": _phi3,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
}

_QWEN2: Config = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA3: Config = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}

ABSENT: dict[str, Config] = {
    "MistralForCausalLM": {"sliding_window": 4096},
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": {**_QWEN2, "head_dim": 128},
    "SmolLM3ForCausalLM": {"use_sliding_window": False, "rope_theta": 2e6, "tie_word_embeddings": True},
    "Phi3ForCausalLM": {"original_max_position_embeddings": 4096},
    "Gemma2ForCausalLM": {
        **_GEMMA3,
        "rope_theta": 1e4,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "Gemma3ForCausalLM": _GEMMA3,
}
"""What the families' own classes take for a field that a config.json does not have."""
