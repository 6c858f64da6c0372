"""The models again, in NumPy and float64, straight from the families' published definitions.

Written apart from the converter, over whole sequences and without a cache, so that a mistake in one is
not in the other. Quantisation is modelled where it is asked for: the same roundings, done exactly.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Wide = npt.NDArray[np.float64]
Config = dict[str, Any]
Tensors = dict[str, npt.NDArray[Any]]
Linear = Callable[[Wide, Wide], Wide]  # activations [n, in], weights [out, in]
Kept = Callable[[int, Wide, Wide], tuple[Wide, Wide]]
"""How a layer's keys and values, each [kv_heads, tokens, dim], are kept."""


def exact(x: Wide, w: Wide) -> Wide:
    return x @ w.T


def int8(x: Wide, w: Wide) -> Wide:
    """Each row of activations, and each output channel of the weights, in 127 steps either way."""
    m = np.abs(x).max(axis=1, keepdims=True)
    s = np.abs(w).max(axis=1, keepdims=True) / 127
    y: Wide = (np.rint(x / m * 127) @ np.rint(w / s).T) * (m / 127) * s.T
    return y


def int4(x: Wide, w: Wide, block: int = 32) -> Wide:
    """Blocks of weights in 16 steps; blocks of activations in 127 steps either way."""

    def split(a: Wide) -> Wide:
        return np.pad(a, ((0, 0), (0, -a.shape[1] % block))).reshape(len(a), -1, block)

    wb, xb = split(w), split(x)
    peak = np.take_along_axis(wb, np.abs(wb).argmax(axis=2)[:, :, None], axis=2)
    s = np.where(peak == 0, 1, peak / -8)
    codes = np.clip(np.rint(wb / s), -8, 7) * s
    m = np.maximum(np.abs(xb).max(axis=2, keepdims=True), 1e-30) / 127
    result: Wide = np.einsum("tbk,obk->to", np.rint(xb / m) * m, codes)
    return result


def by_blocks(x: Wide, w: Wide, *, bits: int) -> Wide:
    """Weights alone, in blocks of 32 with scales of 16 bits."""
    blocks = np.pad(w, ((0, 0), (0, -w.shape[1] % 32))).reshape(len(w), -1, 32)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[:, :, None], axis=2)
    s = np.where(peak == 0, 1, np.abs(peak) / 127 if bits == 8 else peak / -8)
    stored = s.astype(np.float16).astype(np.float64)
    most = 2 ** (bits - 1)
    codes = np.clip(np.rint(blocks / (stored if bits == 8 else s)), -most, most - 1) * stored
    y: Wide = x @ codes.reshape(len(w), -1)[:, : w.shape[1]].T
    return y


LINEARS: dict[str, Linear] = {"fp32": exact, "int8": int8, "int4": int4}
BLOCKS: dict[str, Linear] = {"int8": partial(by_blocks, bits=8), "int4": partial(by_blocks, bits=4)}


def as_they_are(layer: int, k: Wide, v: Wide) -> tuple[Wide, Wide]:
    return k, v


def logits(
    config: Config,
    tensors: Tensors,
    tokens: list[int],
    linear: Linear = exact,
    kv: Kept = as_they_are,
    length: int = 0,
) -> Wide:
    """Logits after each token, [tokens, vocab]."""
    gemma = config["architectures"][0].startswith("Gemma")
    name = "model.embed_tokens" if config.get("tie_word_embeddings", gemma) else "lm_head"
    head = tensors[f"{name}.weight"].astype(np.float64)
    result = linear(states(config, tensors, tokens, linear, kv, length), head)
    if cap := config.get("final_logit_softcapping"):
        result = np.tanh(result / cap) * cap
    return result


def states(
    config: Config,
    tensors: Tensors,
    tokens: list[int],
    linear: Linear = exact,
    kv: Kept = as_they_are,
    length: int = 0,
) -> Wide:
    """What the last norm says of each token, [tokens, hidden]."""
    family = config["architectures"][0].removesuffix("ForCausalLM")
    gemma = family.startswith("Gemma")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    d = config.get("head_dim") or config["hidden_size"] // heads
    eps = config["rms_norm_eps"]

    def get(name: str) -> Wide:
        return tensors[name].astype(np.float64)

    def norm(x: Wide, name: str) -> Wide:
        gain = get(f"{name}.weight") + (1 if gemma else 0)
        y: Wide = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain
        return y

    def project(x: Wide, name: str) -> Wide:
        y = linear(x, get(f"{name}.weight"))
        return y + get(f"{name}.bias") if f"{name}.bias" in tensors else y

    def by_head(x: Wide, count: int) -> Wide:
        return x.reshape(len(tokens), count, d).transpose(1, 0, 2)

    n = len(tokens)
    x = tensors["model.embed_tokens.weight"].astype(np.float16).astype(np.float64)[tokens]
    if gemma:
        x = x * math.sqrt(config["hidden_size"])
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        normed = norm(x, f"{at}.input_layernorm")
        if family == "Phi3":
            joined = project(normed, f"{at}.self_attn.qkv_proj")
            q, k, v = np.split(joined, [heads * d, (heads + kv_heads) * d], axis=1)
        else:
            q, k, v = (project(normed, f"{at}.self_attn.{name}_proj") for name in "qkv")
        q, k, v = by_head(q, heads), by_head(k, kv_heads), by_head(v, kv_heads)
        if family in ("Qwen3", "Gemma3"):
            q, k = norm(q, f"{at}.self_attn.q_norm"), norm(k, f"{at}.self_attn.k_norm")
        window = layer_window(family, config, i)
        if not (family == "SmolLM3" and (i + 1) % 4 == 0):
            cos, sin = rope(config, d, n, length, local=family == "Gemma3" and bool(window))
            q, k = turn(q, cos, sin), turn(k, cos, sin)
        k, v = kv(i, k, v)
        k, v = np.repeat(k, heads // kv_heads, axis=0), np.repeat(v, heads // kv_heads, axis=0)
        scale = config["query_pre_attn_scalar"] ** -0.5 if gemma else d**-0.5
        scores = q @ k.transpose(0, 2, 1) * scale
        if family == "Gemma2":
            cap = config["attn_logit_softcapping"]
            scores = np.tanh(scores / cap) * cap
        back = np.arange(n)[:, None] - np.arange(n)[None, :]
        seen = (back >= 0) & (back < (window or n))
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = project((weights @ v).transpose(1, 0, 2).reshape(n, heads * d), f"{at}.self_attn.o_proj")
        if gemma:
            x = x + norm(out, f"{at}.post_attention_layernorm")
            normed = norm(x, f"{at}.pre_feedforward_layernorm")
        else:
            x = x + out
            normed = norm(x, f"{at}.post_attention_layernorm")
        if family == "Phi3":
            gate, up = np.split(project(normed, f"{at}.mlp.gate_up_proj"), 2, axis=1)
        else:
            gate, up = project(normed, f"{at}.mlp.gate_proj"), project(normed, f"{at}.mlp.up_proj")
        if gemma:
            gate = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        out = project(gate * up, f"{at}.mlp.down_proj")
        x = x + (norm(out, f"{at}.post_feedforward_layernorm") if gemma else out)
    return norm(x, "model.norm")


def layer_window(family: str, config: Config, i: int) -> int:
    """Tokens that a layer sees, itself included; 0: all."""
    window: int = config.get("sliding_window") or 0
    if family == "Gemma2":
        return window if i % 2 == 0 else 0
    if family == "Gemma3":
        return window if (i + 1) % config["sliding_window_pattern"] else 0
    return window if family in ("Mistral", "Phi3") else 0


def rope(config: Config, d: int, n: int, length: int, *, local: bool) -> tuple[Wide, Wide]:
    base = config["rope_local_base_freq"] if local else config["rope_theta"]
    d = int(d * config.get("partial_rotary_factor", 1))
    pairs = np.array([base ** (-2 * j / d) for j in range(d // 2)])
    factor = 1.0
    s: Config = {} if local else config.get("rope_scaling") or {}
    kind = s.get("rope_type", s.get("type"))
    if kind == "linear":
        pairs = pairs / s["factor"]
    elif kind == "llama3":
        original = s["original_max_position_embeddings"]
        for j, f in enumerate(pairs):
            wave = 2 * math.pi / f
            if wave > original / s["low_freq_factor"]:
                pairs[j] = f / s["factor"]
            elif wave >= original / s["high_freq_factor"]:
                smooth = (original / wave - s["low_freq_factor"]) / (
                    s["high_freq_factor"] - s["low_freq_factor"]
                )
                pairs[j] = (1 - smooth) * f / s["factor"] + smooth * f
    elif kind == "yarn":
        original = s["original_max_position_embeddings"]

        def dim(turns: int) -> float:
            return d * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = dim(32), dim(1)
        if s.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d - 1)
        for j, f in enumerate(pairs):
            ramp = min(max((j - low) / max(high - low, 0.001), 0), 1)
            pairs[j] = f / s["factor"] * ramp + f * (1 - ramp)
        both = "mscale" in s and "mscale_all_dim" in s
        above, below = (s["mscale"], s["mscale_all_dim"]) if both else (1, 0)
        factor = (0.1 * above * math.log(s["factor"]) + 1) / (0.1 * below * math.log(s["factor"]) + 1)
    elif kind == "longrope":
        original = config["original_max_position_embeddings"]
        pairs = pairs / np.array(s["long_factor" if length > original else "short_factor"])
        factor = math.sqrt(1 + math.log(config["max_position_embeddings"] / original) / math.log(original))
    angles = np.arange(n)[:, None] * pairs[None, :]
    return np.cos(angles) * factor, np.sin(angles) * factor


def turn(x: Wide, cos: Wide, sin: Wide) -> Wide:
    """The halves of what turns of a head are the two parts of its complex numbers."""
    a, b, rest = np.split(x, [cos.shape[1], 2 * cos.shape[1]], axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
