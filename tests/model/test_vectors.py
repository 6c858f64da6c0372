"""Vectors against an independent float64 implementation, and bit by bit against themselves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from millrace.convert import convert
from millrace.messages import Sampling
from services.engine.loop import StepLoop
from services.engine.model.prepare import prepared
from services.engine.model.session import OrtModel
from services.engine.steps.prefix import Prefixes
from services.engine.steps.scheduler import Output, Scheduler
from services.engine.steps.sequence import Sequence
from tests.kit import reference
from tests.kit.checkpoint import random_tensors, write_checkpoint, write_embedder
from tests.kit.gpus import Opened
from tests.kit.models import FAMILIES

POOLINGS = ["lasttoken", "mean_tokens"]


def made(model: OrtModel, texts: list[list[int]], *, slots: int, chunk: int, late: int = 0) -> list[bytes]:
    """The vectors of texts that are computed together; their grants come `late` steps after them."""
    found: dict[str, bytes] = {}

    def deliver(outputs: list[Output]) -> None:
        found.update({output.request: output.vector for output in outputs})

    prefixes = Prefixes(model.places)
    scheduler = Scheduler(slots, chunk, prefixes)
    loop = StepLoop(scheduler, model, deliver, lambda error: None)
    for i, text in enumerate(texts):
        ends = frozenset([0])
        scheduler.add(Sequence(f"{i}", len(text), list(text), Sampling(0), 1, stop_ids=ends))
    for _ in range(late):
        loop.step()
    for i in range(len(texts)):
        scheduler.grant(f"{i}", 1, [])
    while loop.step():
        pass
    return [found[f"{i}"] for i in range(len(texts))]


def words(config: dict[str, Any], length: int, seed: int = 3) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(0, config["vocab_size"], length).tolist()
    return drawn


def expected(config: dict[str, Any], text: list[int], mode: str, *, unit: bool) -> reference.Wide:
    states = reference.states(config, random_tensors(config), text, length=config["max_position_embeddings"])
    vector = states[-1] if mode == "lasttoken" else states.mean(axis=0)
    found: reference.Wide = vector / np.linalg.norm(vector) if unit else vector
    return found


def read(vectors: list[bytes]) -> npt.NDArray[np.float32]:
    return np.array([np.frombuffer(vector, "<f4") for vector in vectors])


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "mistral", "llama3.2", "gemma3"])
def test_fp32(tmp_path: Path, family: str, mode: str, unit: bool) -> None:
    """To the precision of fp32, for texts of one token, of one chunk and of several."""
    config = FAMILIES[family]
    write_embedder(tmp_path / "hub", config, mode, unit=unit)
    folder = convert(tmp_path / "hub", tmp_path / "m", "fp32", cache="fp32")
    model = OrtModel(folder, 3, 16, max_len=256)
    texts = [words(config, length, length) for length in (1, 5, 16, 45)]
    found = read(made(model, texts, slots=3, chunk=16))
    right = np.array([expected(config, text, mode, unit=unit) for text in texts])

    assert float(np.abs(found - right).max() / np.abs(right).max()) < 2e-5
    assert not unit or np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("mode", POOLINGS)
def test_for_cuda(tmp_path: Path, gpu: Opened, mode: str) -> None:
    """The graphs for a GPU, on a processor, with memory of their own: to the precision of 16 bits."""
    config = FAMILIES["qwen3"]
    write_embedder(tmp_path / "hub", config, mode)
    folder = convert(tmp_path / "hub", tmp_path / "m", device="cuda")
    texts = [words(config, length, length) for length in (1, 5, 45)]
    right = np.array([expected(config, text, mode, unit=True) for text in texts])
    model = OrtModel(folder, 3, 16, max_len=64, device=gpu())
    found = read(made(model, texts, slots=3, chunk=16))

    assert float((found * right).sum(axis=1).min()) > 0.9999


@pytest.fixture(scope="module", params=POOLINGS)
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp(request.param)
    write_embedder(root / "hub", FAMILIES["qwen3"], request.param)
    yield convert(root / "hub", root / "m")


def test_the_usual_conversion_is_near(embedder: Path) -> None:
    """8 bits keep the direction of a vector, and the card says how well."""
    config, mode = FAMILIES["qwen3"], embedder.parent.name.rstrip("0")
    text = words(config, 45)
    (found,) = read(made(OrtModel(embedder, 2, 16), [text], slots=2, chunk=16))
    card = json.loads((embedder / "millrace.json").read_text())

    assert float(found @ expected(config, text, mode, unit=True)) > 0.99
    assert card["quality"]["cosine"] > 0.99
    assert card["pooling"] == {"mode": {"lasttoken": "last", "mean_tokens": "mean"}[mode], "unit": True}


def test_company_changes_no_bit(embedder: Path) -> None:
    """A vector is the same alone and among others, in chunks of any size, granted early or late, with a
    beginning that was computed for another, and from graphs that were prepared for the machine."""
    config = FAMILIES["qwen3"]
    shared = words(config, 40, 1)
    texts = [[*shared, *words(config, n, n)] if n % 2 else words(config, n, n) for n in (1, 2, 7, 30, 61)]
    alone = OrtModel(embedder, 1, 64, max_len=256)
    expected = [made(alone, [text], slots=1, chunk=64)[0] for text in texts]
    graphs = prepared(embedder, embedder.parent / "cache")
    for chunk, late in ((5, 0), (16, 3), (64, 9)):
        model = OrtModel(embedder, 3, chunk, max_len=256, graphs=graphs, prefix_bytes=1 << 20)

        assert expected == made(model, texts, slots=3, chunk=chunk, late=late)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config.json": {"architectures": ["BertModel"]}}, "'BertModel'.* only such decoders"),
        ({"config.json": {"is_causal": False}}, "looks at the tokens behind"),
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, "cls_token.*not supported"),
        ({"1_Pooling/config.json": {"pooling_mode": "max"}}, "pooling by max"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "default prompt 'query'"),
    ],
)
def test_what_cannot_be_computed_is_named(
    tmp_path: Path, change: dict[str, dict[str, Any]], said: str
) -> None:
    """Encoders, other poolings and prompts that would be put before a text are refused at conversion."""
    hub = write_embedder(tmp_path / "hub", FAMILIES["qwen3"])
    for name, fields in change.items():
        path = hub / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | fields))
    with pytest.raises(ValueError, match=said):
        convert(hub, tmp_path / "m")


def test_modules_behind_the_pooling_are_named(tmp_path: Path) -> None:
    """A layer that is not known must not be left out."""
    hub = write_embedder(tmp_path / "hub", FAMILIES["qwen3"])
    modules = json.loads((hub / "modules.json").read_text())
    modules.insert(2, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (hub / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="Transformer -> Pooling -> Dense -> Normalize"):
        convert(hub, tmp_path / "m")


def test_a_model_without_a_head_makes_no_text(tmp_path: Path) -> None:
    """Without a word of how to pool, a headless checkpoint is no model that can be served."""
    config = {**FAMILIES["qwen3"], "architectures": ["Qwen3Model"]}
    write_checkpoint(tmp_path / "hub", {**config, "architectures": ["Qwen3ForCausalLM"]})
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'Qwen3Model'"):
        convert(tmp_path / "hub", tmp_path / "m")
