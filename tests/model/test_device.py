"""A GPU's memory and its steps: what is moved, kept, fetched back or recorded changes no bit.

Here ONNX Runtime's memory of the processor stands for the GPU's; tests/gpu has the same on one.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from millrace.convert.card import Quant
from services.engine.model.host import HostShelf
from services.engine.model.session import OrtModel
from services.engine.steps.prefix import BLOCK
from services.engine.steps.scheduler import Chunk, Fetch, Keep, Load, Shelve, Step, Swap
from services.engine.steps.sequence import Sequence
from tests.kit.gpus import QUANTS, Opened, most, right, sequence, shape, written
from tests.kit.models import FAMILIES
from tests.model.test_golden import error, words

Floats = npt.NDArray[np.float32]

CHUNK = 16


@pytest.fixture(params=QUANTS)
def quant(request: pytest.FixtureRequest) -> Quant:
    found: Quant = request.param
    return found


def fill(model: OrtModel, row: Sequence, tokens: int) -> None:
    """So many tokens of it are computed, chunk by chunk."""
    for start in range(0, tokens, CHUNK):
        model.run(Step([], Chunk(row, start, min(CHUNK, tokens - start))))
    row.computed = tokens


def blocks(model: OrtModel, slot: int, tokens: int) -> list[bytes]:
    """Keys and values of a slot's whole blocks, by way of the pool."""
    count = tokens // BLOCK
    model.copy([Keep(slot, 0, list(range(count)))])
    return [block.tobytes() for block in model._slots.contents(list(range(count)))]


def test_slots_change_places(tmp_path: Path, gpu: Opened, quant: Quant) -> None:
    """Each holds what the other held, of another length; a step there and back finds what it found before."""
    config = shape("qwen3", quant)
    folder = written(tmp_path, config, quant)
    model = OrtModel(folder, 3, CHUNK, max_len=256, prefix_bytes=1 << 20, device=gpu())
    lengths = 5 * BLOCK, 2 * BLOCK
    rows = [sequence(words(config, n + 1, n), slot) for slot, n in enumerate(lengths)]
    for row, length in zip(rows, lengths, strict=True):
        fill(model, row, length)
    model.run(Step(rows, None))
    before, held = model.logits.copy(), [blocks(model, i, n) for i, n in enumerate(lengths)]
    model._slots.swap(Swap(0, lengths[0], 1, lengths[1]))
    exchanged = [blocks(model, 1 - i, n) for i, n in enumerate(lengths)]
    model.run(Step(rows, None, swaps=(Swap(0, lengths[1], 1, lengths[0]),)))

    assert held[0][0] != held[1][0] and held == exchanged
    assert np.array_equal(before, model.logits)
    expected = np.array([right(config, quant, row.tokens)[-1] for row in rows])
    assert error(before, expected) < most("qwen3", quant)


def test_a_prefix_that_was_kept_is_what_it_was(tmp_path: Path, gpu: Opened, quant: Quant) -> None:
    """On the GPU, in this machine's memory, or part here and part there: what follows has the same bits."""
    config = shape("qwen3", quant)
    folder = written(tmp_path, config, quant)
    model = OrtModel(folder, 3, CHUNK, max_len=256, prefix_bytes=1 << 20, host_bytes=1 << 20, device=gpu())
    assert isinstance(model.shelf, HostShelf)
    count = 3
    tokens = words(config, count * BLOCK + 9)
    first, second = sequence(tokens, 0), sequence(tokens, 2)
    beside = sequence(words(config, 40, 9), 1)
    fill(model, first, count * BLOCK)
    fill(model, beside, BLOCK)
    model.run(Step([], Chunk(first, count * BLOCK, 9)))
    wanted = model.logits.copy()
    assert error(wanted, right(config, quant, tokens)[-1:]) < most("qwen3", quant)
    names, places = [bytes([i + 1] * 32) for i in range(count)], [4, 2, 7]
    model.copy([Keep(0, 0, places), *(Shelve(name, at) for name, at in zip(names, places, strict=True))])
    for near in (count, 0, 1):
        model.copy([Keep(1, 0, [0]), Load(2, 0, [0]), Load(2, BLOCK, [0]), Load(2, 2 * BLOCK, [0])])
        fetched = [block for name in names[near:] if (block := model.shelf.take(name)) is not None]
        model.copy([Load(2, 0, places[:near])] if near else [])
        model.copy([Fetch(2, near * BLOCK, fetched)] if fetched else [])
        model.run(Step([], Chunk(second, count * BLOCK, 9)))

        assert np.array_equal(wanted, model.logits), near


@pytest.mark.parametrize("vocab", [331, 8192, 40960])
def test_candidates_are_the_best_of_the_logits(tmp_path: Path, gpu: Opened, vocab: int) -> None:
    """Of few words and of many, which are chosen by blocks: best first, equals by their ids; with which of
    several equals the list ends is left to the GPU."""
    config = FAMILIES["qwen3"] | {"vocab_size": vocab}
    model = OrtModel(written(tmp_path, config, "fp16"), 3, 16, max_len=64, device=gpu())
    rows = [sequence(words(config, 9, slot), slot) for slot in range(3)]
    for row in rows:
        fill(model, row, 8)
    found = model.run(Step(rows, None))
    logits = found.full().copy()
    for row, ids, best in zip(logits, found.ids, found.logits, strict=True):
        order = np.lexsort((np.arange(vocab), -row))[: len(ids)]
        sure = row[order] > row[order[-1]]

        assert np.array_equal(row[order], best) and np.array_equal(row[ids], best)
        assert np.array_equal(order[sure], ids[sure])
        assert len(set(ids.tolist())) == len(ids)


def test_a_recorded_step_is_what_it_was(tmp_path: Path, gpu: Opened, quant: Quant) -> None:
    """Of several shapes in turn, by rows and by reach, with other tokens in between: each time the same bits,
    and those of the tokens that are there now."""
    config = shape("qwen3", quant)
    model = OrtModel(written(tmp_path, config, quant), 4, CHUNK, max_len=600, device=gpu())
    lengths = 300, 40, 20, 60
    rows = [sequence(words(config, n + 2, n), slot) for slot, n in enumerate(lengths)]
    for row, length in zip(rows, lengths, strict=True):
        fill(model, row, length)
    expected = [right(config, quant, row.tokens)[-2:] for row in rows]
    found: dict[tuple[int, int], list[Floats]] = {}
    for _ in range(3):
        for more in (0, 1):
            for row, length in zip(rows, lengths, strict=True):
                row.computed = length + more
            for count in (1, 2, 3, 4):
                model.run(Step(rows[:count], None, others=tuple(rows[count:])))
                found.setdefault((count, more), []).append(model.logits[:count].copy())
                wanted = np.array([each[more] for each in expected[:count]])

                assert error(model.logits[:count], wanted) < most("qwen3", quant)

    assert all(np.array_equal(each[0], other) for each in found.values() for other in each)


def test_company_of_one_size_changes_no_bit(tmp_path: Path, gpu: Opened, quant: Quant) -> None:
    """What a row is beside, and in which slot it is, as long as rows are as many and reach as far."""
    config = shape("qwen3", quant)
    folder = written(tmp_path, config, quant)
    mine = words(config, 41, 1)
    for captures in (True, False):
        model = OrtModel(folder, 3, CHUNK, max_len=256, device=gpu(captures=captures))
        found = []
        for seed, slot, length in ((2, 0, 50), (3, 0, 50), (4, 1, 30), (5, 2, 7)):
            rows = [sequence(words(config, length + 1, seed + i), i) for i in range(3)]
            rows[slot] = sequence(mine, slot)
            longest = (slot + 1) % 3
            rows[longest] = sequence(words(config, 51, seed + 9), longest)
            for row in rows:
                fill(model, row, len(row.tokens) - 1)
            model.run(Step(rows, None))
            found.append(model.logits[slot].copy())

        assert all(np.array_equal(found[0], other) for other in found)
        assert error(found[0], right(config, quant, mine)[-1]) < most("qwen3", quant)
