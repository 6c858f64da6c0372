"""How likely the chosen tokens were, and what else was: as the model has it, before anything chooses."""

import numpy as np

from millrace.messages import Odds
from services.engine.sample import Candidates
from services.engine.sequence import Sequence

LEAST = -9999.0
"""What stands for the logarithm of nothing, which JSON cannot say; the number is OpenAI's."""


def odds(candidates: Candidates, sequences: list[Sequence], tokens: list[int]) -> list[Odds | None]:
    """Of the rows that want them: the logarithm of the softmax over the whole row. Empty if none does."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.logprobs >= 0]
    if not rows:
        return []
    logits = candidates.full()[rows].astype(np.float64)
    peaks = logits.max(axis=1, keepdims=True)
    total = peaks + np.log(np.exp(logits - peaks).sum(axis=1, keepdims=True))
    chosen = logits[np.arange(len(rows)), [tokens[row] for row in rows]] - total[:, 0]
    best = np.maximum(candidates.logits[rows] - total, LEAST)
    found: list[Odds | None] = [None] * len(sequences)
    for at, row in enumerate(rows):
        count = sequences[row].logprobs
        found[row] = Odds(
            max(float(chosen[at]), LEAST), candidates.ids[row, :count].tolist(), best[at, :count].tolist()
        )
    return found
