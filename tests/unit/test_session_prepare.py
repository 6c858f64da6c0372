"""What a machine keeps of a model: prepared graphs give the same bits, once made they are used again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from millrace import models, possible, settings
from millrace.convert import card, convert
from millrace.convert.card import Quant
from millrace.messages import Sampling
from millrace.pooling import Pooling
from services.engine import opening
from services.engine.model import prepare
from services.engine.model.session import OrtModel
from services.engine.model.shelf import FileShelf
from services.engine.steps.prefix import BLOCK
from services.engine.steps.scheduler import Chunk, Keep, Shelve, Step
from services.engine.steps.sequence import Sequence
from tests.kit.checkpoint import write_checkpoint, write_embedder
from tests.kit.models import FAMILIES
from tests.kit.service import environment


def logits(model: OrtModel) -> list[npt.NDArray[np.float32]]:
    """Of each form of a step: a fill, a chunk that ends, a row, and both."""
    first = Sequence("a", 9, list(range(9)), Sampling(0), 9, epoch=1, slot=0)
    other = Sequence("b", 5, [4, 3, 2, 1, 0], Sampling(0), 9, epoch=1, slot=2)
    found = []
    for step, computed in (
        (Step([], Chunk(first, 0, 4)), 4),
        (Step([], Chunk(first, 4, 5)), 8),
        (Step([first], None), 8),
        (Step([first], Chunk(other, 0, 5)), 8),
    ):
        model.run(step)
        first.computed = computed
        found.append(model.logits[: len(step.samples)].copy())
    return found


@pytest.mark.parametrize("family", ["qwen3", "llama2"])
def test_prepared_graphs_give_the_same_bits(tmp_path: Path, family: str) -> None:
    """And the forms share one file of packed weights."""
    write_checkpoint(tmp_path / "hub", FAMILIES[family])
    folder = convert(tmp_path / "hub", tmp_path / "model")
    graphs = prepare.prepared(folder, tmp_path / "cache")
    assert graphs
    plain, packed = OrtModel(folder, 3, 8), OrtModel(folder, 3, 8, graphs=graphs)

    assert all(np.array_equal(a, b) for a, b in zip(logits(plain), logits(packed), strict=True))
    assert 1 == len({path.stat().st_ino for path in graphs.glob("*.bin")})
    assert graphs == prepare.prepared(folder, tmp_path / "cache")


def test_fast_graphs_have_no_weights_of_their_own(tmp_path: Path) -> None:
    """They are made of a folder as it is, once, and share its one file; the first layer rounds as it does
    without them, since it reads the same."""
    write_checkpoint(tmp_path / "hub", {**FAMILIES["phi3"], "head_dim": 32, "partial_rotary_factor": 0.5})
    folder = convert(tmp_path / "hub", tmp_path / "model")
    graphs = prepare.prepared(folder, tmp_path / "cache")
    assert graphs
    fast = prepare.faster(folder, tmp_path / "cache", graphs)
    files = {path.stat().st_ino for each in (graphs, fast) for path in each.glob("*.bin")}

    assert 1 == len(files)
    assert fast == prepare.faster(folder, tmp_path / "cache", graphs)

    blocks: list[Any] = []
    for given in (None, fast):
        model = OrtModel(folder, 1, BLOCK, graphs=graphs, fast=given, prefix_bytes=1 << 20)
        model.shelf = FileShelf(tmp_path / f"shelf {given is None}", 1 << 20, model.kind, model.block)
        prompt = Sequence("a", BLOCK, list(range(BLOCK)), Sampling(0), 1, epoch=1, slot=0)
        model.run(Step([], Chunk(prompt, 0, BLOCK)))
        model.copy([Keep(0, 0, [0]), Shelve(b"name" * 8, 0)])
        blocks.append(model.shelf.take(b"name" * 8))

    assert blocks[0][0].any() and np.array_equal(blocks[0][0], blocks[1][0])


def test_fast_mode_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    """With the reason, before anything is served."""
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    int8 = convert(hub, tmp_path / "int8")
    int4 = convert(hub, tmp_path / "int4", "int4", accept=True)
    wide = convert(hub, tmp_path / "wide", cache="fp32")

    with pytest.raises(ValueError, match="none can be kept"):
        prepare.faster(int8, tmp_path / "cache", None)
    for model, device, why in (
        ("sim", "cpu", "simulated"),
        (hub, "cuda", "processors"),
        (int4, "cpu", "is int4"),
        (wide, "cpu", "in fp32"),
    ):
        with pytest.raises(settings.SettingError, match=f"--fast: .*{why}"):
            possible.fast(models.find(str(model)), settings.Engine(device=device, fast=True))
    possible.fast(models.find(str(hub)), settings.Engine(fast=True))
    possible.fast(models.find(str(int4)), settings.Engine())


@pytest.mark.parametrize("quant", ["int4", "fp32"])
def test_other_quantisations_are_not_packed(tmp_path: Path, quant: Quant) -> None:
    """ONNX Runtime cannot read their packed weights back."""
    write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    folder = convert(tmp_path / "hub", tmp_path / "model", quant, accept=True)

    assert prepare.prepared(folder, tmp_path / "cache") is None


def test_a_hub_folder_is_converted_once(tmp_path: Path) -> None:
    """Until its files change."""
    write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    model = models.find(str(tmp_path / "hub"))
    first = prepare.converted(model, tmp_path / "cache")
    stamp = (first / "millrace.json").stat().st_mtime_ns

    assert first == prepare.converted(model, tmp_path / "cache")
    assert stamp == (first / "millrace.json").stat().st_mtime_ns
    write_checkpoint(tmp_path / "hub", FAMILIES["llama2"], seed=1)
    assert first != prepare.converted(model, tmp_path / "cache")


COLD = """
import logging, sys
import subprocess
import sys
from pathlib import Path
from millrace import models
from services.engine import opening
from services.engine.model import prepare
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
ready = prepare.converted(models.find(sys.argv[1]), Path(sys.argv[2]))
print(prepare.prepared(ready, Path(sys.argv[2])))
"""


def test_how_a_vector_is_made_belongs_to_a_conversion(tmp_path: Path) -> None:
    """Another pooling is another model, though its weights are the same; and no file outside is looked at."""
    hub = write_embedder(tmp_path / "hub", FAMILIES["qwen3"])
    last = card.load(prepare.converted(models.find(str(hub)), tmp_path / "cache"))
    write_embedder(tmp_path / "other", FAMILIES["qwen3"], "mean_tokens")
    shutil.copy(tmp_path / "other" / "1_Pooling" / "config.json", hub / "1_Pooling")
    mean = card.load(prepare.converted(models.find(str(hub)), tmp_path / "cache"))
    (hub / "modules.json").write_text('[{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "/etc"}]')

    assert [Pooling("last", unit=True), Pooling("mean", unit=True)] == [last.pooling, mean.pooling]
    with pytest.raises(ValueError, match=r"unsafe file name '/etc/config.json'"):
        prepare.converted(models.find(str(hub)), tmp_path / "cache")


def test_two_cold_engines_convert_once(tmp_path: Path) -> None:
    """The second waits for the first, says so, and has the same."""
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    command = [sys.executable, "-c", COLD, str(hub), str(tmp_path / "cache")]
    both = [
        subprocess.Popen(command, env=environment({}), stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate()[0].splitlines() for process in both]

    assert said[0][-1] == said[1][-1] != "None"
    assert 1 == sum("converting: 0 of" in line for lines in said for line in lines)


def test_our_own_form_is_used_where_it_lies(tmp_path: Path) -> None:
    """A converted folder is not converted again."""
    write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    folder = convert(tmp_path / "hub", tmp_path / "model")

    assert folder == prepare.converted(models.find(str(folder)), tmp_path / "cache")


def test_without_a_cache_the_graphs_are_used_as_they_are(tmp_path: Path) -> None:
    """A read-only home costs start-up time, not the service."""
    write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    folder = convert(tmp_path / "hub", tmp_path / "model")
    (tmp_path / "cache").write_text("not a folder")

    assert prepare.prepared(folder, tmp_path / "cache") is None


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_the_engine_takes_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: Quant) -> None:
    """As the Hub has it, or converted; its first steps run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    ours = convert(hub, tmp_path / "ours", quant, accept=True)
    for folder in (hub, ours):
        opening.warm_up(opening.real(models.find(str(folder)), settings.Engine(slots=2, max_len=64)))


def test_a_folder_that_cannot_run_is_a_wrong_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said as such, with the reason."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    (hub / "model.safetensors").unlink()

    with pytest.raises(settings.SettingError, match=r"model.safetensors is missing"):
        opening.real(models.find(str(hub)), settings.Engine(slots=2))


def test_a_file_that_cannot_be_read_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be the same at the next start: its engine says which and why, and ends."""
    write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    whole = convert(tmp_path / "hub", tmp_path / "whole")
    for spoilt in ("gone", "nowhere", "folder", "cut"):
        for file in ("rows.onnx", "weights.bin"):
            folder = tmp_path / f"{spoilt}-{file}"
            monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # or a copy made before is used
            shutil.copytree(whole, folder)
            path = folder / file
            if spoilt == "cut":
                os.truncate(path, path.stat().st_size // 2)
            else:
                path.unlink()
            if spoilt == "nowhere":
                path.symlink_to("nowhere")
            if spoilt == "folder":
                path.mkdir()
            with pytest.raises(ValueError, match=f"{folder}/") as found:
                opening.real(models.find(str(folder)), settings.Engine(slots=1))
            assert "\n" not in str(found.value)


def test_a_model_for_the_other_device_is_refused(tmp_path: Path) -> None:
    """With the command that makes the right one; a Hub's folder becomes either, each in its place."""
    write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    convert(tmp_path / "hub", tmp_path / "gpu", device="cuda", accept=True)
    gpu, hub = (models.find(str(tmp_path / name)) for name in ("gpu", "hub"))

    with pytest.raises(ValueError, match=r"written for cuda: run `millrace model convert --device cpu .*hub"):
        prepare.converted(gpu, tmp_path / "cache")
    assert gpu.folder == prepare.converted(gpu, tmp_path / "cache", "cuda")
    assert prepare.converted(hub, tmp_path / "cache") != prepare.converted(hub, tmp_path / "cache", "cuda")
