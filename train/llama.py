"""The demo model in torch: a Llama decoder as one function over a dict of tensors, and its folder.

Shape        what config.json says
begin        fresh weights, named as in a Hugging Face folder
hidden       token ids in, the last layer's normed states out; a cache makes it a step
save, load   the folder: config.json, generation_config.json, model.safetensors (bf16)
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from torch.nn import functional as F  # type: ignore[import-not-found]

Tensor = Any  # torch is not there when the types are checked
Weights = dict[str, Tensor]
Cache = list[tuple[Tensor, Tensor]]  # a layer's keys and values so far


@dataclass(frozen=True)
class Shape:
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


def begin(shape: Shape, seed: int) -> Weights:
    """Normal weights; those that write to the residual stream are smaller, since all layers add up there."""
    torch.manual_seed(seed)
    wide, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {"embed_tokens": (shape.vocab_size, shape.hidden_size)}
    for at in range(shape.num_hidden_layers):
        sizes |= {
            f"layers.{at}.input_layernorm": (shape.hidden_size,),
            f"layers.{at}.self_attn.q_proj": (wide, shape.hidden_size),
            f"layers.{at}.self_attn.k_proj": (kv, shape.hidden_size),
            f"layers.{at}.self_attn.v_proj": (kv, shape.hidden_size),
            f"layers.{at}.self_attn.o_proj": (shape.hidden_size, wide),
            f"layers.{at}.post_attention_layernorm": (shape.hidden_size,),
            f"layers.{at}.mlp.gate_proj": (shape.intermediate_size, shape.hidden_size),
            f"layers.{at}.mlp.up_proj": (shape.intermediate_size, shape.hidden_size),
            f"layers.{at}.mlp.down_proj": (shape.hidden_size, shape.intermediate_size),
        }
    sizes["norm"] = (shape.hidden_size,)
    weights: Weights = {}
    for name, size in sizes.items():
        if len(size) == 1:
            weight = torch.ones(size)
        else:
            residual = name.endswith(("o_proj", "down_proj"))
            weight = torch.randn(size) * 0.02 / (math.sqrt(2 * shape.num_hidden_layers) if residual else 1)
        weights[f"model.{name}.weight"] = weight
    return weights


def hidden(
    weights: Weights, shape: Shape, ids: Tensor, positions: Tensor, cache: Cache | None = None
) -> Tensor:
    """[batch, length] ids to [batch, length, hidden]. With a cache, the ids follow what is in it."""
    rates = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2, device=ids.device) / shape.head_dim)
    angles = positions[:, None, :, None].float() * rates  # [batch, 1, length, head_dim / 2]
    turns = torch.cat([angles, angles], -1)
    cos, sin = turns.cos(), turns.sin()
    x = F.embedding(ids, weights["model.embed_tokens.weight"])
    for at in range(shape.num_hidden_layers):
        layer = {
            name: weights[f"model.layers.{at}.{name}.weight"]
            for name in ("input_layernorm", "post_attention_layernorm")
        }
        x = x + _attention(weights, shape, at, _norm(x, layer["input_layernorm"], shape), cos, sin, cache)
        y = _norm(x, layer["post_attention_layernorm"], shape)
        gate, up, down = (
            weights[f"model.layers.{at}.mlp.{way}_proj.weight"] for way in ("gate", "up", "down")
        )
        x = x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)
    return _norm(x, weights["model.norm.weight"], shape)


def logits(weights: Weights, states: Tensor) -> Tensor:
    return F.linear(states, weights["model.embed_tokens.weight"])


def _norm(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    return F.rms_norm(x, (shape.hidden_size,), weight, shape.rms_norm_eps)


def _attention(
    weights: Weights, shape: Shape, at: int, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None
) -> Tensor:
    query, key, value, out = (weights[f"model.layers.{at}.self_attn.{way}_proj.weight"] for way in "qkvo")
    q, k, v = (
        F.linear(x, weight).unflatten(-1, (-1, shape.head_dim)).transpose(1, 2)
        for weight in (query, key, value)
    )
    q, k = (z * cos.to(z.dtype) + _turn(z) * sin.to(z.dtype) for z in (q, k))
    if cache is not None:
        if at < len(cache):
            k, v = torch.cat([cache[at][0], k], 2), torch.cat([cache[at][1], v], 2)
            cache[at] = (k, v)
        else:
            cache.append((k, v))
    if cache is None and not q.is_cuda:
        y = _causal(q, k, v)
    else:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True)
    return F.linear(y.transpose(1, 2).flatten(2), out)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in plain products: on a CPU and for short texts faster than the fused bf16 one."""
    batch, heads, length, dim = q.shape
    grouped = (q * dim**-0.5).reshape(-1, heads // k.shape[1] * length, dim)
    scores = (grouped @ k.reshape(-1, length, dim).transpose(1, 2)).unflatten(1, (-1, length))
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    shares = scores.masked_fill(later, float("-inf")).softmax(-1).to(v.dtype)
    return (shares.flatten(1, 2) @ v.reshape(-1, length, dim)).view(batch, heads, length, dim)


def _turn(x: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat([-right, left], -1)


def save(weights: Weights, shape: Shape, folder: Path, *, bos: int, eos: int) -> int:
    """Write the folder; returns the size of its weights in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": bos}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        **vars(shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        **ids,
    }
    for name, value in {"config": config, "generation_config": {**ids, "do_sample": False}}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    raw = b""
    for name, weight in weights.items():
        data = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(weight.shape),
            "data_offsets": [len(raw), len(raw) + len(data)],
        }
        raw += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the file and like aligned tensors
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw)
    return 8 + len(text) + len(raw)


def load(folder: Path) -> tuple[Weights, Shape]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    weights: Weights = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begins, ends = entry["data_offsets"]
            flat = torch.frombuffer(bytearray(data[start + begins : start + ends]), dtype=torch.bfloat16)
            weights[name] = flat.view(entry["shape"])
    return weights, Shape(**{name: config[name] for name in Shape.__dataclass_fields__})
