"""Folders as the Hub has them, small or of a real shape, filled with random weights."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[Any]]

DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int32": "I32"}  # bf16 is given by its bits


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in tensors.items():
        end = at + array.nbytes
        header[name] = {
            "dtype": DTYPES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def bf16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a configuration, by the names the Hub's checkpoints use."""
    family = config["architectures"][0]
    hidden, inner, heads = (config[n] for n in ("hidden_size", "intermediate_size", "num_attention_heads"))
    d = config.get("head_dim") or hidden // heads
    q, kv = heads * d, config.get("num_key_value_heads", heads) * d
    biased = bool(config.get("attention_bias"))
    qkv_bias = family == "Qwen2ForCausalLM" or biased
    made: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings", family.startswith("Gemma")):
        made["lm_head.weight"] = (config["vocab_size"], hidden)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if family.startswith("Gemma"):
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        made |= {f"{at}.{norm}.weight": (hidden,) for norm in norms}
        if family == "Phi3ForCausalLM":
            made[f"{at}.self_attn.qkv_proj.weight"] = (q + 2 * kv, hidden)
            made[f"{at}.mlp.gate_up_proj.weight"] = (2 * inner, hidden)
        else:
            for name, size in (("q", q), ("k", kv), ("v", kv)):
                made[f"{at}.self_attn.{name}_proj.weight"] = (size, hidden)
                if qkv_bias:
                    made[f"{at}.self_attn.{name}_proj.bias"] = (size,)
            made[f"{at}.mlp.gate_proj.weight"] = made[f"{at}.mlp.up_proj.weight"] = (inner, hidden)
        made[f"{at}.self_attn.o_proj.weight"] = (hidden, q)
        if biased:
            made[f"{at}.self_attn.o_proj.bias"] = (hidden,)
        made[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        if config.get("mlp_bias"):
            sizes = {"gate": inner, "up": inner, "down": hidden}
            made |= {f"{at}.mlp.{name}_proj.bias": (size,) for name, size in sizes.items()}
        if family in ("Qwen3ForCausalLM", "Gemma3ForCausalLM"):
            made |= {f"{at}.self_attn.{n}_norm.weight": (d,) for n in "qk"}
    return made


def random_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    """Weights that keep the activations at the size of one, so that every part of a layer counts."""
    rng = np.random.default_rng(seed)
    gemma = config["architectures"][0].startswith("Gemma")
    made: Tensors = {}
    for name, shape in shapes(config).items():
        drawn = rng.standard_normal(shape, dtype=np.float32)
        if "norm" in name:
            drawn = drawn * np.float32(0.2) + np.float32(0 if gemma else 1)
        elif len(shape) == 1:
            drawn *= np.float32(0.3)
        elif name == "model.embed_tokens.weight":
            drawn *= np.float32(1 / np.sqrt(shape[1]) if gemma else 0.7)
        else:
            drawn *= np.float32(1.5 / np.sqrt(shape[1]))
        if config.get("loud_keys") and "k_proj.bias" in name:
            drawn[::5] *= 100  # as Qwen2's are: an 8-bit cache with one scale does not survive it
        made[name] = drawn
    return made


def write_checkpoint(
    folder: Path, config: dict[str, Any], seed: int = 0, dtype: str = "F32", shards: int = 1
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = random_tensors(config, seed)
    if dtype == "BF16":
        tensors = {name: bf16(array) for name, array in tensors.items()}
    elif dtype == "F16":
        tensors = {name: array.astype(np.float16) for name, array in tensors.items()}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    names = list(tensors)
    where = {name: f"model-{1 + i % shards:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(where.values())):
        write_safetensors(folder / shard, {n: tensors[n] for n in names if where[n] == shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def write_embedder(
    folder: Path, config: dict[str, Any], mode: str = "lasttoken", *, unit: bool = True, seed: int = 0
) -> Path:
    """One that makes vectors, as sentence-transformers saves it: without a head, and without the prefix of
    its tensors' names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    headless = {
        name.removeprefix("model."): tensor
        for name, tensor in random_tensors(config, seed).items()
        if name != "lm_head.weight"
    }
    write_safetensors(folder / "model.safetensors", headless)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 2 + unit]
    modules = [
        {"idx": i, "name": f"{i}", "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {
        f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    flags[f"pooling_mode_{mode}"] = True
    size = {"word_embedding_dimension": config["hidden_size"]}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(size | flags))
    return folder


SMOLLM2_135M: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}

QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}

QWEN3_4B: dict[str, Any] = {
    **QWEN3_06B,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
}
