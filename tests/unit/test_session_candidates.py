"""The graph's candidates are the best tokens, best first, whatever the size of the vocabulary."""

from pathlib import Path

import numpy as np
import pytest

from millrace.convert import convert
from millrace.messages import Sampling
from services.engine.model.session import OrtModel
from services.engine.steps.scheduler import Chunk, Step
from services.engine.steps.sequence import Sequence
from tests.kit.checkpoint import random_tensors, write_checkpoint, write_safetensors
from tests.kit.models import small


@pytest.mark.parametrize("vocab", [40, 331, 49152 // 4, 5003])
@pytest.mark.parametrize("ties", [False, True])
def test_candidates_are_the_best(tmp_path: Path, vocab: int, ties: bool) -> None:
    """In one level, in two, or where the words make no even blocks; equals in ascending order of id."""
    config = small("Llama", vocab_size=vocab, num_hidden_layers=1)
    write_checkpoint(tmp_path / "hub", config)
    if ties:  # every word has the head of one of eight
        tensors = random_tensors(config)
        head = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = head[np.random.default_rng(0).integers(0, 8, vocab)]
        write_safetensors(tmp_path / "hub" / "model.safetensors", tensors)
    model = OrtModel(convert(tmp_path / "hub", tmp_path / "m"), 3, 16)
    for slot in range(2):
        sequence = Sequence("a", 5, [1 + slot, 2, 3, 4, 5], Sampling(0), 1, epoch=1, slot=slot)
        model.run(Step([], Chunk(sequence, 0, 4)))
    rows = [Sequence("a", 5, [1, 2, 3, 4, 5], Sampling(0), 1, epoch=1, slot=s, computed=4) for s in (1, 0)]
    found = model.run(Step(rows, Chunk(Sequence("b", 3, [7, 8, 9], Sampling(0), 1, epoch=1, slot=2), 0, 3)))

    assert (3, min(64, vocab)) == found.ids.shape
    for row in range(3):
        logits = model.logits[row]
        expected = np.lexsort((np.arange(vocab), -logits))[: found.ids.shape[1]]
        assert np.array_equal(expected, found.ids[row])
        assert np.array_equal(logits[expected], found.logits[row])
