"""One vector of a text, from its tokens' states: that of the last, or the mean of all.

The mean is summed token by token: in which steps they were computed does not change a bit of it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from millrace.pooling import Pooling
from services.engine.choice.sample import Candidates
from services.engine.steps.scheduler import Step
from services.engine.steps.sequence import Sequence

LEAST = 1e-12
"""A shorter vector stays shorter than one, as in sentence-transformers."""


@dataclass(frozen=True, slots=True)
class Vectors(Candidates):
    """No candidates: a vector of each sample, little-endian fp32."""

    rows: list[bytes]

    @classmethod
    def of(cls, rows: list[bytes]) -> "Vectors":
        nothing = np.empty((len(rows), 0), np.float32)
        return cls(nothing.astype(np.int64), nothing, 0, lambda: nothing, rows)


class Pool:
    def __init__(self, of: Pooling):
        self.whole = of.mode == "mean"  # whether it takes the state of every token
        self._unit = of.unit

    def take(self, step: Step, states: npt.NDArray[np.float32]) -> Vectors:
        """`states`: of the rows, and behind them of the chunk: of all its tokens, or of its last, if that is
        a sample."""
        count = len(step.rows)
        parts = [(row, states[at : at + 1]) for at, row in enumerate(step.rows)]
        if step.chunk:
            parts.append((step.chunk.sequence, states[count:]))
        for sequence, found in parts:
            if not self.whole:
                sequence.pooled = None
            for state in found:
                before = 0.0 if sequence.pooled is None else sequence.pooled
                sequence.pooled = before + state.astype(np.float64)
        return Vectors.of([self._vector(sequence) for sequence in step.samples])

    def _vector(self, sequence: Sequence) -> bytes:
        assert sequence.pooled is not None
        vector = sequence.pooled / (sequence.prompt_len if self.whole else 1)
        if self._unit:
            vector = vector / max(float(np.sqrt((vector * vector).sum())), LEAST)
        return vector.astype("<f4").tobytes()
