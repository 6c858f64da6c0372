"""Folders in 4 bits: what their codes stand for is what the engine computes with, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.convert import card, convert, packed
from millrace.convert.safetensors import Weights
from services.engine.model.session import OrtModel
from tests.kit import reference
from tests.kit.checkpoint import Tensors, write_safetensors
from tests.kit.models import small
from tests.kit.packed import unpacked, write_packed
from tests.model.test_golden import computed, error, rounded, words

CONFIG = small(
    "Qwen2",
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
)
JOINED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}

FORMS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq", "group": 32},
    "gptq, newer form": {"method": "gptq", "group": 64, "form": "gptq_v2"},
    "gptq, symmetric": {"method": "gptq", "group": 16, "symmetric": True},
    "gptq, act order": {"method": "gptq", "group": 32, "shuffled": True},
    "gptq, one group": {"method": "gptq", "group": -1},
    "gptq, called older, written newer": {
        "method": "gptq",
        "group": 32,
        "symmetric": True,
        "zero_of": 8,
    },
    "awq": {"method": "awq", "group": 32},
    "awq, groups of 64": {"method": "awq", "group": 64},
}


@pytest.mark.parametrize("form", FORMS)
def test_codes_are_kept(tmp_path: Path, form: str) -> None:
    """Every weight is the same number, to the bit, read from the graph as its operator is defined."""
    meant = write_packed(tmp_path / "hub", CONFIG, **FORMS[form])
    folder = convert(tmp_path / "hub", tmp_path / "m", accept=True)

    assert "int4" == card.load(folder).quant
    for i in range(CONFIG["num_hidden_layers"]):
        for name, parts in JOINED.items():
            expected = np.concatenate([meant[f"model.layers.{i}.{part}.weight"] for part in parts])
            assert np.array_equal(expected, unpacked(folder, f"model.layers.{i}.{name}")), name


@pytest.mark.parametrize("form", FORMS)
def test_logits(tmp_path: Path, form: str) -> None:
    """Those of the weights that are meant, with the roundings of activations modelled."""
    meant = write_packed(tmp_path / "hub", CONFIG, **FORMS[form])
    folder = convert(tmp_path / "hub", tmp_path / "m", accept=True)
    model = OrtModel(folder, 3, 16, max_len=256)
    size = 16 if FORMS[form]["group"] == 16 else 32

    def linear(x: reference.Wide, w: reference.Wide) -> reference.Wide:
        if len(w) == CONFIG["vocab_size"]:
            return reference.int8(x, w)
        k = x.shape[1]
        if FORMS[form].get("shuffled"):
            x = x[:, order := np.argsort(np.random.default_rng(k).permutation(k) // 32, kind="stable")]
            w = w[:, order]
        blocks = x.reshape(len(x), -1, size)
        steps = np.maximum(np.abs(blocks).max(axis=2, keepdims=True), 1e-30) / 127
        made: reference.Wide = (np.rint(blocks / steps) * steps).reshape(x.shape) @ w.T
        return made

    errors = []
    for seed in range(4):
        tokens = words(CONFIG, 24, seed)
        found, at = computed(model, tokens, chunk=6)
        expected = reference.logits(CONFIG, meant, tokens, linear, rounded(folder, CONFIG))
        errors.append(error(found, expected[at]))

    assert sorted(errors)[1] < 2e-5
    assert max(errors) < 0.1


def test_other_quantisations_may_be_asked_for(tmp_path: Path) -> None:
    """From the full weights that the codes stand for."""
    meant = write_packed(tmp_path / "hub", CONFIG, "awq", group=32)
    full = packed.opened(tmp_path / "hub")
    for quant in ("int8", "fp32"):
        found = card.load(convert(tmp_path / "hub", tmp_path / quant, quant, accept=True))
        assert quant == found.quant
    name = "model.layers.1.mlp.down_proj.weight"

    assert name in full
    assert np.array_equal(meant[name], full.get(name, *meant[name].shape))


def loud(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.o_proj.bias"][3] = 1


def regrouped(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.k_proj.g_idx"][:] = tensors["model.layers.0.self_attn.k_proj.g_idx"][
        ::-1
    ]


def uneven(tensors: Tensors) -> None:
    tensors["model.layers.0.mlp.down_proj.g_idx"][0] = 1


def cut(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.down_proj.qweight"
    tensors[name] = tensors[name][1:]


def lost(tensors: Tensors) -> None:
    del tensors["model.layers.0.mlp.down_proj.qzeros"]


@pytest.mark.parametrize(
    ("given", "damage", "says"),
    [
        ({"method": "gptq", "bits": 8}, None, "gptq weights with bits 8 are not read, only 4"),
        ({"method": "gptq", "form": "marlin"}, None, "checkpoint_format 'marlin'"),
        ({"method": "gptq", "dynamic": {"-:.*": {}}}, None, "dynamic"),
        ({"method": "gptq", "zero_of": 15}, None, "a zero point of 16"),
        ({"method": "gptq", "group_size": "all"}, None, "group_size 'all'"),
        ({"method": "gptq", "group_size": 24}, None, "64 inputs in groups of 24"),
        ({"method": "gptq", "group_size": 8}, None, "64 inputs in groups of 8"),
        (
            {"method": "awq", "version": "gemv"},
            None,
            "version 'gemv' are not read, only 'gemm'",
        ),
        ({"method": "gptq", "quant_method": "fp8"}, None, "weights quantised by fp8 are not read"),
        ({"method": "gptq", "quant_method": ""}, None, "a method without a name"),
        ({"method": "gptq"}, loud, "o_proj.bias is there"),
        (
            {"method": "gptq", "shuffled": True},
            regrouped,
            "k_proj groups its inputs in another way",
        ),
        ({"method": "gptq"}, uneven, "g_idx does not divide 192 inputs into groups of 32"),
        ({"method": "gptq"}, cut, r"int32 of shape \[23, 64\], not 32 bits of \[24, 64\]"),
        ({"method": "awq"}, lost, "down_proj.qzeros is missing"),
    ],
)
def test_what_is_not_read_is_refused(
    tmp_path: Path, given: dict[str, Any], damage: Callable[[Tensors], None] | None, says: str
) -> None:
    """By its name, and nothing is left."""
    hub = tmp_path / "hub"
    write_packed(hub, CONFIG, **{"group": 32, **given})
    if damage:
        weights = Weights(hub)
        tensors: Tensors = {name: weights.raw(name).copy() for name in weights}
        damage(tensors)
        write_safetensors(hub / "model.safetensors", tensors)

    with pytest.raises(ValueError, match=says):
        convert(hub, tmp_path / "m", accept=True)
    assert not (tmp_path / "m").exists()


def test_an_older_folder(tmp_path: Path) -> None:
    """Its method is in a file of its own, and its weights are named after it."""
    hub = tmp_path / "hub"
    meant = write_packed(hub, CONFIG, "gptq", group=32)
    config = (hub / "config.json").read_text()
    given = config[config.index('"quantization_config": ') + len('"quantization_config": ') : -1]
    (hub / "config.json").write_text(config[: config.index(', "quantization_config"')] + "}")
    (hub / "quantize_config.json").write_text(given.replace('"quant_method": "gptq", ', ""))
    (hub / "model.safetensors").rename(hub / "gptq_model-4bit-32g.safetensors")
    name = "model.layers.0.self_attn.o_proj"

    assert np.array_equal(meant[f"{name}.weight"], unpacked(convert(hub, tmp_path / "m", accept=True), name))
