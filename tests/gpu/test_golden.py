"""Logits from a GPU against the independent float64 implementation: every family in every quantisation."""

from pathlib import Path

import numpy as np
import pytest

from millrace.convert import card, convert
from millrace.convert.card import Quant
from millrace.messages import Sampling
from services.engine.model.session import OrtModel
from services.engine.steps.scheduler import Chunk, Step
from services.engine.steps.sequence import Sequence
from tests.kit import reference
from tests.kit.gpus import QUANTS, Opened, most, right, shape, written
from tests.kit.models import FAMILIES, small
from tests.kit.packed import write_packed
from tests.model.test_golden import SLOTS, computed, error, words

HEADS = {
    "heads of 64": {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
    "heads of 80": {"head_dim": 80, "num_attention_heads": 4, "num_key_value_heads": 2},
    "heads of 96": {"head_dim": 96, "num_attention_heads": 2, "num_key_value_heads": 2},
    "heads of 128": {"head_dim": 128, "num_attention_heads": 1, "num_key_value_heads": 1},
    "heads of 256": {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1},
    "three a group": {"head_dim": 64, "num_attention_heads": 6, "num_key_value_heads": 2},
    "six a group": {"head_dim": 128, "num_attention_heads": 6, "num_key_value_heads": 1},
    "eight a group": {"head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 1},
}
"""Shapes of attention, for each of which CUDA has another kernel."""


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits(tmp_path: Path, gpu: Opened, name: str, quant: Quant) -> None:
    """Prompts by chunks, then rows beside another prompt and, recorded and not, without one."""
    config = shape(name, quant)
    folder = written(tmp_path, config, quant)
    tokens = words(config, 45)
    expected = right(config, quant, tokens)
    for captures in (True, False):
        model = OrtModel(folder, SLOTS, 16, max_len=256, device=gpu(captures=captures))
        found, at = computed(model, tokens, chunk=6)

        assert error(found, expected[at]) < most(name, quant)


@pytest.mark.parametrize("family", ["llama2", "mistral", "gemma2", "qwen3"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("quant", ["fp16", "bf16"])
def test_shapes_of_attention(tmp_path: Path, gpu: Opened, family: str, heads: str, quant: Quant) -> None:
    """With contexts beyond one block of attention, with windows and caps where a family has them."""
    config = FAMILIES[family] | {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= HEADS[heads] | ({"sliding_window": 70} if config.get("sliding_window") else {})
    tokens = words(config, 340)
    model = OrtModel(written(tmp_path, config, quant), 5, 200, max_len=400, device=gpu())
    expected = right(config, quant, tokens)
    rows = []
    for slot, length in enumerate((339, 1, 100, 257)):
        rows.append(Sequence(f"{slot}", length, tokens[: length + 1], Sampling(0), 1, epoch=1, slot=slot))
        for start in range(0, length, 130):
            model.run(Step([], Chunk(rows[-1], start, min(130, length - start))))
        rows[-1].computed = length
    wanted = expected[[row.computed for row in rows]]
    model.run(Step(rows, None))
    together = model.logits[: len(rows)].copy()
    last = Sequence("last", 12, tokens[:12], Sampling(0), 1, epoch=1, slot=4)
    model.run(Step(rows, Chunk(last, 0, 12)))
    beside = model.logits.copy()

    assert error(together, wanted) < most(family, quant)
    assert error(beside, np.concatenate([wanted, expected[11:12]])) < most(family, quant)


@pytest.mark.parametrize("quant", ["fp16", "int8", "int4"])
def test_many_words_and_many_slots(tmp_path: Path, gpu: Opened, quant: Quant) -> None:
    """The words of a real model, of which candidates are chosen by blocks, for 64 rows of all lengths."""
    config = small("Qwen2", hidden_size=64, num_attention_heads=4, vocab_size=151936, num_hidden_layers=1)
    config |= {"intermediate_size": 64}
    tokens = words(config, 65)
    model = OrtModel(written(tmp_path, config, quant), 64, 16, max_len=80, device=gpu())
    rows = [Sequence(f"{i}", i + 1, tokens, Sampling(0), 1, epoch=1, slot=i) for i in range(64)]
    for row in rows:
        row.computed = row.slot + 1
        for start in range(0, row.computed, 16):
            model.run(Step([], Chunk(row, start, min(16, row.computed - start))))
    found = model.run(Step(rows, None))
    expected = right(config, quant, tokens)[1:]
    logits = found.full()

    assert error(logits, expected) < most("", quant)
    assert np.array_equal(np.sort(logits, axis=1)[:, : -len(found.ids[0]) - 1 : -1], found.logits)
    assert np.array_equal(np.take_along_axis(logits, found.ids, axis=1), found.logits)


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("inner", [192, 96])
def test_codes_of_others(tmp_path: Path, gpu: Opened, method: str, inner: int) -> None:
    """Weights that came in 4 bits, with zero points; layers whose inputs CUDA's kernels cannot take, too."""
    config = small("Llama", hidden_size=128, intermediate_size=inner, num_attention_heads=8)
    meant = write_packed(tmp_path / "hub", config, method, group=32)
    folder = convert(tmp_path / "hub", tmp_path / "m", device="cuda", accept=True)
    model = OrtModel(folder, SLOTS, 16, max_len=256, device=gpu())
    tokens = words(config, 45)
    found, at = computed(model, tokens, chunk=6)

    assert bool(card.load(folder).kernels) == (inner == 96)
    assert error(found, reference.logits(config, meant, tokens)[at]) < most("", "int4")


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_inputs_that_are_no_multiple(tmp_path: Path, gpu: Opened, quant: Quant) -> None:
    """Of 64, but of 32: such layers stay in 16 bits, where other kernels would write beside their memory."""
    config = FAMILIES["phi3 long"]
    model = OrtModel(written(tmp_path, config, quant), SLOTS, 16, max_len=256, device=gpu())
    tokens = words(config, 45)
    found, at = computed(model, tokens, chunk=6)

    assert model.card.kernels
    assert error(found, right(config, "fp16", tokens)[at]) < most("", quant)
