"""The demo model with what makes real models hard to quantise; what it computes stays nearly the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from millrace.convert.safetensors import Weights
from tests.kit.checkpoint import Tensors, write_safetensors
from train import corpus, facts

DEMO = Path("models/demo")
LAYERS = 4
HEADS, KV_HEADS, DIM = 8, 4, 32

TURN = "<|im_start|>user\nTell me about {}.<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
TEXT = "".join(TURN.format(topic, corpus.essay(topic)) for topic in facts.ESSAYS)
"""What the demo model knows by heart: what it says next is hardly ever a toss of a coin."""


def huge_norm_channels(tensors: Tensors) -> None:
    """A few channels of each norm are hundreds of times as large as the others."""
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for i in range(LAYERS):
        for norm, linears in readers.items():
            tensors[f"model.layers.{i}.{norm}.weight"][5::80] *= 300
            for linear in linears:
                tensors[f"model.layers.{i}.{linear}.weight"][:, 5::80] /= 300


def spiked_down_inputs(tensors: Tensors) -> None:
    """Some of down_proj's inputs are hundreds of times as large as the others."""
    for i in range(LAYERS):
        at = f"model.layers.{i}.mlp"
        tensors[f"{at}.up_proj.weight"][7::90] *= 400
        tensors[f"{at}.down_proj.weight"][:, 7::90] /= 400


def twin_spikes(tensors: Tensors) -> None:
    """The same, but they cancel: their weights are as large as the others, which no factor can mend."""
    rng = np.random.default_rng(1)
    for i in range(LAYERS):
        at = f"model.layers.{i}.mlp"
        for linear in ("gate_proj", "up_proj"):
            tensors[f"{at}.{linear}.weight"][8::90] = tensors[f"{at}.{linear}.weight"][7::90]
        down = tensors[f"{at}.down_proj.weight"]
        down[:, 8::90] = 0
        tensors[f"{at}.up_proj.weight"][7::90] *= 1000
        tensors[f"{at}.up_proj.weight"][8::90] *= 1000
        down[:, 7::90] /= 1000
        cancelling = rng.standard_normal(down[:, 7::90].shape, dtype=np.float32) * down.std()
        down[:, 7::90] += cancelling
        down[:, 8::90] -= cancelling


def loud_values(tensors: Tensors) -> None:
    """A few channels of the values are hundreds of times as large as the others."""
    for i in range(LAYERS):
        at = f"model.layers.{i}.self_attn"
        tensors[f"{at}.v_proj.weight"][3::DIM] *= 300
        heads = tensors[f"{at}.o_proj.weight"].reshape(-1, HEADS, DIM)
        heads[:, :, 3] /= 300


def loud_keys(tensors: Tensors) -> None:
    """Biases that make two channels of each key hundreds of times as large as the others, as Qwen2 has."""
    for i in range(LAYERS):
        at = f"model.layers.{i}.self_attn"
        for name, size in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            tensors[f"{at}.{name}_proj.bias"] = np.zeros(size * DIM, np.float32)
        pair = [DIM // 2 - 1, DIM - 1]  # the slowest to turn
        tensors[f"{at}.k_proj.bias"].reshape(-1, DIM)[:, pair] = 800
        tensors[f"{at}.q_proj.weight"].reshape(HEADS, DIM, -1)[:, pair] = 0


def plant(folder: Path, what: Callable[[Tensors], None]) -> Path:
    folder.mkdir()
    config = json.loads((DEMO / "config.json").read_text())
    weights = Weights(DEMO)
    tensors: Tensors = {name: weights.get(name, *weights.shape(name)) for name in weights}
    what(tensors)
    if "model.layers.0.self_attn.k_proj.bias" in tensors:
        config["architectures"] = ["Qwen2ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    shutil.copy(DEMO / "tokenizer.json", folder)
    return folder
