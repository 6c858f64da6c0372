"""What the shipped model must answer: its logits computed here, its tokens by the slow sampler."""

from typing import Any

import numpy as np
import numpy.typing as npt

from millrace import cache, models
from millrace.messages import Sampling
from services.engine.choice.sample import uniform
from services.engine.model import prepare
from services.engine.model.session import OrtModel
from services.engine.steps.scheduler import Chunk, Step
from services.engine.steps.sequence import Sequence
from tests.kit import slow_sampler

Row = npt.NDArray[np.float64]


class Oracle:
    def __init__(self) -> None:
        root = cache.root()
        folder = prepare.converted(models.find("demo"), root)
        self._model = OrtModel(folder, 1, 512, max_len=512, graphs=prepare.prepared(folder, root))
        self.vocab = self._model.card.vocab

    def logits(self, tokens: list[int]) -> Row:
        """After these tokens."""
        sequence = Sequence("oracle", len(tokens), tokens, Sampling(0), 1, epoch=1, slot=0)
        self._model.run(Step([], Chunk(sequence, 0, len(tokens))))
        row: Row = self._model.logits[0].astype(np.float64)
        return row

    def logprobs(self, tokens: list[int]) -> Row:
        row = self.logits(tokens)
        peak = row.max()
        found: Row = row - peak - np.log(np.exp(row - peak).sum())
        return found

    def answer(
        self, prompt: list[int], sampling: Sampling, max_tokens: int, stop_ids: set[int], **more: Any
    ) -> list[int]:
        """Each token by the rule, and nothing else."""
        sequence = Sequence(
            "oracle", len(prompt), list(prompt), sampling, max_tokens, stop_ids=frozenset(stop_ids), **more
        )
        finish = ""
        while not finish:
            seed, at = np.array([sampling.seed], np.uint64), np.array([sequence.answered], np.uint64)
            row = self.logits(sequence.tokens).tolist()
            finish = sequence.append(slow_sampler.choose(row, sequence, float(uniform(seed, at)[0])))
        return sequence.tokens[len(prompt) :]
