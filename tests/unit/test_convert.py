"""Conversion: what it reads, what it refuses, and that it leaves nothing half made."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.convert import architecture, card, convert
from millrace.convert.linear import blocks, channels
from millrace.convert.safetensors import Weights
from tests.kit.checkpoint import random_tensors, write_checkpoint, write_safetensors
from tests.kit.models import FAMILIES, small

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
        (config(hidden_act="relu"), "'relu'"),
        (config(rope_scaling={"type": "magic"}), "'magic'"),
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
        (small("Mistral", sliding_window=None), [0, 0, 0]),
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


def test_newer_configurations_say_the_same() -> None:
    """`rope_parameters` in place of `rope_theta` and `rope_scaling`."""
    old = small("Llama", rope_theta=5e5, rope_scaling={"rope_type": "linear", "factor": 4.0})
    new = small("Llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5})
    del new["rope_theta"]
    tables = [architecture.read(c).layers[0].rope for c in (old, new)]

    assert tables[0] and tables[1]
    assert np.array_equal(tables[0].tables(64), tables[1].tables(64))
