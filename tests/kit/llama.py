"""A Llama decoder in float64 NumPy, independent of torch and ONNX Runtime: slow, plain, and the reference.

read         a Hugging Face folder's config and weights; bf16, fp16 and fp32 become float64
logits       every position's logits of one sequence of token ids
greedy       the most likely continuation, the whole sequence computed again for each token
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's table of tensors, and where their bytes begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(size))
    table.pop("__metadata__", None)
    return table, 8 + size


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    table, start = header(folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    weights = {}
    for name, entry in table.items():
        begins, ends = entry["data_offsets"]
        raw = data[start + begins : start + ends]
        if entry["dtype"] == "BF16":  # the upper half of a float32
            value = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            value = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[entry["dtype"]])
        weights[name] = value.astype(np.float64).reshape(entry["shape"])
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), weights


def logits(config: dict[str, Any], weights: dict[str, Array], ids: Sequence[int]) -> Array:
    """[length, vocabulary], with rotary positions from 0 and a causal mask."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    length = len(ids)
    rates = config["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
    angles = np.tile(np.arange(length)[:, None] * rates, 2)[:, None]  # [length, 1, dim]
    later = np.triu(np.ones((length, length), bool), 1)

    def norm(x: Array, name: str) -> Array:
        scale = np.sqrt(np.mean(x * x, -1, keepdims=True) + config["rms_norm_eps"])
        normed: Array = x / scale * weights[f"model.{name}.weight"]
        return normed

    def rotate(x: Array) -> Array:
        left, right = np.split(x, 2, -1)
        turned: Array = x * np.cos(angles) + np.concatenate([-right, left], -1) * np.sin(angles)
        return turned

    x = weights["model.embed_tokens.weight"][list(ids)]
    for at in range(config["num_hidden_layers"]):

        def linear(x: Array, name: str, at: int = at) -> Array:
            return x @ weights[f"model.layers.{at}.{name}_proj.weight"].T

        y = norm(x, f"layers.{at}.input_layernorm")
        q = rotate(linear(y, "self_attn.q").reshape(length, heads, dim))
        k = rotate(linear(y, "self_attn.k").reshape(length, kv_heads, dim))
        v = linear(y, "self_attn.v").reshape(length, kv_heads, dim)
        k, v = (np.repeat(z, heads // kv_heads, 1) for z in (k, v))  # a group of heads shares keys and values
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores[:, later] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + linear(np.einsum("hqk,khd->qhd", shares, v).reshape(length, heads * dim), "self_attn.o")
        y = norm(x, f"layers.{at}.post_attention_layernorm")
        gate = linear(y, "mlp.gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, "mlp.up"), "mlp.down")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x, "norm") @ head.T


def greedy(
    config: dict[str, Any],
    weights: dict[str, Array],
    ids: Sequence[int],
    *,
    eos: Collection[int],
    longest: int = 64,
) -> list[int]:
    said: list[int] = []
    while len(said) < longest:
        token_id = int(logits(config, weights, [*ids, *said])[-1].argmax())
        if token_id in eos:
            break
        said.append(token_id)
    return said
