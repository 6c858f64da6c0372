"""Conversion: what it reads, what it refuses, and that it leaves nothing half made."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from millrace import models, plan
from millrace.convert import architecture, card, convert
from millrace.convert.graph import own
from millrace.convert.linear import blocks, channels
from millrace.convert.safetensors import Weights
from tests.kit import reference
from tests.kit.checkpoint import random_tensors, write_checkpoint, write_safetensors
from tests.kit.models import FAMILIES, small, whole
from tests.kit.packed import write_packed

CONFIG = FAMILIES["llama2"]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_read_in_every_type(tmp_path: Path, dtype: str, shards: int) -> None:
    """To the precision of the type, from one file or several."""
    write_checkpoint(tmp_path, CONFIG, dtype=dtype, shards=shards)
    weights = Weights(tmp_path)
    step = {"F32": 0, "F16": 2**-10, "BF16": 2**-7}[dtype]
    for name, expected in random_tensors(CONFIG).items():
        found = weights.get(name, *expected.shape)
        assert found.dtype == np.float32
        assert np.allclose(expected, found, rtol=step, atol=1e-6 if step else 0), name


def test_the_card_says_what_the_engine_needs(tmp_path: Path) -> None:
    """And two conversions of the same weights have the same digest."""
    write_checkpoint(tmp_path / "hub", CONFIG)
    seen: list[tuple[int, int]] = []
    first = convert(
        tmp_path / "hub", tmp_path / "a", progress=lambda done, total, what: seen.append((done, total))
    )
    second = convert(tmp_path / "hub", tmp_path / "b")
    found = card.load(first)

    assert (3, 6, 16, 331, 1024) == (found.layers, found.kv_heads, found.head_dim, found.vocab, found.max_len)
    assert ("int8", "int8", 2 * 3 * 6 * 16) == (found.quant, found.cache, found.token_bytes)
    assert found.digest == card.load(second).digest
    assert all(scale > 0 for pair in found.scales for scale in pair)
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] and sorted(seen) == seen
    assert json.loads((first / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("came", ["int8", "int4", "packed"])
def test_what_a_gpus_kernels_cannot_take_stays_in_16_bits(tmp_path: Path, came: str) -> None:
    """Layers of 96 inputs, among others of 128: the card names them, and what is needed counts their bytes
    once, since both sessions share them, and those of the others twice; before converting, about as after."""
    config = whole(CONFIG) | {"intermediate_size": 96}
    if came == "packed":
        write_packed(tmp_path / "hub", config, "gptq", group=32)
    else:
        write_checkpoint(tmp_path / "hub", config)
    quant = None if came == "packed" else came
    folder = convert(tmp_path / "hub", tmp_path / "m", quant, device="cuda", accept=True)  # type: ignore[arg-type]
    graph = onnx.load(folder / "rows.onnx", load_external_data=False).graph
    fewer = [each for each in graph.node if each.op_type == "MatMulNBits"]
    sizes = {a.i for each in fewer for a in each.attribute if a.name == "K"}
    found = card.load(folder)
    needed = plan.needs(models.find(str(folder)), "cuda")

    layers = range(config["num_hidden_layers"])
    assert {f"model.layers.{i}.mlp.down_proj": "fp16" for i in layers} == found.kernels
    assert {128} == sizes
    assert sum(own(graph).values()) == found.own == needed.weights - (folder / found.data).stat().st_size
    if came == "packed":
        before = plan.needs(models.find(str(tmp_path / "hub")), "cuda")
        assert 0.5 < before.weights / needed.weights < 1.1  # what was not in 4 bits, as the head, is more


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    """Not the folder, nor what it was made in."""
    write_checkpoint(tmp_path / "hub", CONFIG)

    def stop(done: int, total: int, what: str) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "hub", tmp_path / "out" / "m", progress=stop)

    assert [] == list((tmp_path / "out").iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder that exists stays as it is."""
    write_checkpoint(tmp_path / "hub", CONFIG)
    with pytest.raises(ValueError, match="exists already"):
        convert(tmp_path / "hub", tmp_path)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"quant": "bf16"}, r"'bf16' is not known on cpu: there are int8 .*; bf16 is for --device cuda"),
        ({"quant": "int3"}, "'int3' is not known on cpu: there are .* fp32 with a cache of int8 or fp32$"),
        (
            {"quant": "bf16", "cache": "fp16", "device": "cuda"},
            "cache of 'fp16' .* bf16 with a cache of bf16$",
        ),
        ({"cache": "bf16", "device": "cuda"}, "'fp16' with a cache of 'bf16' .*, bf16 with a cache of bf16$"),
        ({"quant": "fp32", "device": "cuda"}, "; fp32 is for --device cpu"),
    ],
)
def test_what_a_device_cannot_have_is_refused(tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    """With what it can, and where there is what was asked for."""
    write_checkpoint(tmp_path / "hub", CONFIG)
    with pytest.raises(ValueError, match=says):
        convert(tmp_path / "hub", tmp_path / "m", **asked)


def unlink(name: str) -> Callable[[Path], object]:
    return lambda hub: (hub / name).unlink()


def config(**more: Any) -> Callable[[Path], object]:
    return lambda hub: (hub / "config.json").write_text(json.dumps({**CONFIG, **more}))


def index(shard: str) -> Callable[[Path], object]:
    def act(hub: Path) -> None:
        path = hub / "model.safetensors.index.json"
        made = json.loads(path.read_text())
        made["weight_map"]["model.norm.weight"] = shard
        path.write_text(json.dumps(made))

    return act


def link(hub: Path) -> None:
    shard = hub / "model-00001-of-00002.safetensors"
    shard.rename(hub.parent / "elsewhere")
    shard.symlink_to(hub.parent / "elsewhere")


def cut(hub: Path) -> None:
    os.truncate(hub / "model-00001-of-00002.safetensors", 5000)


def header(text: bytes) -> Callable[[Path], object]:
    content = struct.pack("<Q", len(text)) + text
    return lambda hub: (hub / "model-00001-of-00002.safetensors").write_bytes(content)


def lack(hub: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["lm_head.weight"]
    (hub / "model.safetensors.index.json").unlink()
    write_safetensors(hub / "model.safetensors", tensors)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (unlink("config.json"), r"config.json: not found"),
        (unlink("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors is missing"),
        (config(architectures=["BertModel"]), "'BertModel' is not one of"),
        (config(architectures=None), "is not one of"),
        (config(hidden_size="wide"), "wide"),
        (config(hidden_size=80), r"has shape \[331, 72\], not \[331, 80\]"),
        (config(num_hidden_layers=4), "model.layers.3.*is missing"),
        (config(num_hidden_layers=0), "below one"),
        (config(num_key_value_heads=4), "6 heads cannot share 4"),
        (config(head_dim=12), "12 channels"),
        (config(rms_norm_eps=None), "wrong kind"),
        (config(num_attention_heads=0, head_dim=None), "wrong kind"),
        (config(rope_parameters=[1]), "wrong kind"),
        (config(hidden_act="relu"), "'relu'"),
        (config(rope_scaling={"type": "magic"}), "'magic'"),
        (config(rope_scaling={"type": "linear"}), "does not say factor"),
        (config(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "does not say low_freq_factor"),
        (config(rope_parameters={"sliding_attention": {"rope_theta": 1e4}}), "by kinds of layers"),
        (config(partial_rotary_factor=0.5), "8 of a head's 16 channels turn"),
        (config(layer_types=["chunked_attention"] * 3), "kind chunked_attention"),
        (config(layer_types=["full_attention"] * 2), "2 layer types for 3 layers"),
        (config(architectures=["SmolLM3ForCausalLM"], no_rope_layers=[1, 0]), "2 no_rope_layers for 3"),
        (
            config(architectures=["Phi3ForCausalLM"], rope_scaling={"type": "linear", "factor": 2.0}),
            "'linear' is not supported in this family",
        ),
        (
            config(
                rope_scaling={"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0]},
                original_max_position_embeddings=512,
            ),
            "long_factor of the rope scaling is not a list of 8",
        ),
        (config(quantization_config={"bits": 4}), "quantised by a method without a name"),
        (index("../secret.safetensors"), "unsafe file name"),
        (index("/etc/passwd"), "unsafe file name"),
        (index("model-00009-of-00002.safetensors"), "is missing"),
        (link, "leads out of its folder"),
        (cut, "truncated"),
        (header(b"{"), "not a safetensors file"),
        (header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}'), "negative"),
        (header(b'{"a": {"dtype": "F8", "shape": [1], "data_offsets": [0, 1]}}'), "F8"),
        (lack, "lm_head.weight is missing"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    """With a ValueError that says what is wrong, and no folder."""
    hub = write_checkpoint(tmp_path / "hub", CONFIG, shards=2)
    damage(hub)
    with pytest.raises(ValueError, match=says):
        convert(hub, tmp_path / "out" / "m")

    assert not (tmp_path / "out").exists() or [] == list((tmp_path / "out").iterdir())


def test_the_hubs_own_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    """A revision there is a folder of links."""
    hub = write_checkpoint(tmp_path / "models--a--b" / "snapshots" / "0123", CONFIG)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (hub / "model.safetensors").rename(blobs / "f00d")
    (hub / "model.safetensors").symlink_to(Path("../../blobs/f00d"))

    assert convert(hub, tmp_path / "m").is_dir()


def test_eight_bits_are_within_half_a_step() -> None:
    """Of each output channel's own step."""
    weights = np.random.default_rng(0).standard_normal((5, 70), dtype=np.float32)
    codes, scale = channels(weights)

    assert np.abs(codes * scale[:, None] - weights).max() <= scale.max() * 0.5001
    assert (127, 127) == (np.abs(codes).max(axis=1).min(), np.abs(codes).max())


def test_four_bits_are_within_one_step() -> None:
    """The largest value of a block is exact; the far end of the other sign may lose one step."""
    weights = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32)
    codes, scale = blocks(weights)
    fours = np.stack([codes & 15, codes >> 4], axis=-1).reshape(5, 2, 32)
    back = ((fours.astype(np.float32) - 8) * scale[:, :, None]).reshape(5, 64)

    assert np.abs(back - weights).max() <= np.abs(scale).max() * 1.0001


@pytest.mark.parametrize(
    ("given", "windows"),
    [
        (small("Qwen2", sliding_window=8), [0, 0, 0]),
        (small("Qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=1), [0, 8, 8]),
        (small("Qwen2", sliding_window=8, use_sliding_window=True), [0, 0, 0]),  # from layer 28 on
        (small("Mistral", sliding_window=None), [0, 0, 0]),
        (small("Mistral"), [4096, 4096, 4096]),
        (small("SmolLM3", sliding_window=8, num_hidden_layers=4), [0, 0, 0, 0]),
        (small("SmolLM3", sliding_window=8, num_hidden_layers=4, use_sliding_window=True), [0, 0, 0, 8]),
        (small("Gemma2"), [4096, 0, 4096]),
        (small("Gemma2", sliding_window=8, num_hidden_layers=4), [8, 0, 8, 0]),
        (
            small("Gemma3", sliding_window=8, layer_types=["full_attention", "sliding_attention"] * 2)
            | {"num_hidden_layers": 4},
            [0, 8, 0, 8],
        ),
    ],
)
def test_windows(given: dict[str, Any], windows: list[int]) -> None:
    """Each family says in its own way which layers have one."""
    assert windows == [layer.window for layer in architecture.read(given).layers]


def newer(config: dict[str, Any]) -> dict[str, Any]:
    """What Transformers 5 writes of a configuration of before."""
    new = {k: v for k, v in config.items() if not k.startswith("rope_") and k != "sliding_window_pattern"}
    scaling = dict(config.get("rope_scaling") or {})
    rope = {"rope_type": scaling.pop("type", "default"), "rope_theta": config["rope_theta"], **scaling}
    for name in ("original_max_position_embeddings", "partial_rotary_factor"):
        rope |= {name: config[name]} if name in config else {}
    if every := config.get("sliding_window_pattern"):
        local = {"rope_type": "default", "rope_theta": config["rope_local_base_freq"]}
        layers = range(1, config["num_hidden_layers"] + 1)
        new["layer_types"] = ["sliding_attention" if i % every else "full_attention" for i in layers]
        rope = {"full_attention": rope, "sliding_attention": local}
    return {**new, "dtype": "bfloat16", "rope_parameters": rope}


@pytest.mark.parametrize("name", FAMILIES)
def test_newer_configurations_say_the_same(name: str) -> None:
    """`rope_parameters` and `layer_types` in place of all that older ones had for each."""
    old, new = (architecture.read(c).layers for c in (FAMILIES[name], newer(FAMILIES[name])))

    assert [layer.window for layer in old] == [layer.window for layer in new]
    assert [layer.rope is None for layer in old] == [layer.rope is None for layer in new]
    for was, is_ in zip(old, new, strict=True):
        if was.rope and is_.rope:
            assert np.array_equal(was.rope.tables(64), is_.rope.tables(64))


@pytest.mark.parametrize(
    ("scaling", "more"),
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, {}),
        ({"type": "yarn", "factor": 8.0}, {"original_max_position_embeddings": 128}),
        ({"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "truncate": False}, {}),
        ({"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64, "mscale_all_dim": 0.4}, {}),
        ({"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "mscale_all_dim": 0.9}, {}),
        (
            {"type": "su", "short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]},
            {"original_max_position_embeddings": 256},
        ),
    ],
)
def test_positions_are_stretched_as_the_reference_has_it(
    scaling: dict[str, Any], more: dict[str, Any]
) -> None:
    """Whatever a scaling says, and where: nothing of it is passed over."""
    config = small("Phi3" if scaling.get("type") == "su" else "Llama", rope_scaling=scaling, **more)
    rope = architecture.read(config).layers[0].rope
    original = {"original_max_position_embeddings": 1024} | more
    told = original | scaling | {"type": "longrope" if scaling.get("type") == "su" else "yarn"}
    expected = reference.rope({**config, **original, "rope_scaling": told}, 16, 300, 1024, local=False)

    assert rope
    assert all(np.allclose(a, b[:300], atol=1e-5) for a, b in zip(expected, rope.tables(1024), strict=True))


@pytest.mark.parametrize(
    ("given", "base", "activation", "caps"),
    [
        (small("SmolLM3"), 2e6, False, (0, 0)),
        (small("Gemma2"), 1e4, True, (50, 30)),
        (small("Gemma3", num_hidden_layers=6), 1e6, True, (0, 0)),
        (small("Qwen3"), 1e4, False, (0, 0)),
    ],
)
def test_what_is_not_said_is_the_familys_own(
    given: dict[str, Any], base: float, activation: bool, caps: tuple[float, float]
) -> None:
    """A configuration need not repeat what the family's class takes without it."""
    del given["rope_theta"]
    made = architecture.read(given)
    full = next(layer.rope for layer in made.layers if not layer.window)

    assert full
    assert (base, activation, caps) == (full.base, made.gelu, (made.attention_cap, made.logit_cap))
