"""How likely the chosen tokens were, and what else was: as the model has it, before anything chooses."""

import numpy as np

from millrace.messages import Odds
from services.engine.choice.sample import Candidates
from services.engine.steps.sequence import Sequence

LEAST = -9999.0
"""What stands for the logarithm of nothing, which JSON cannot say; the number is OpenAI's."""


ROWS = 8
"""At once: of a large vocabulary a row takes more than a megabyte."""


def odds(candidates: Candidates, sequences: list[Sequence], tokens: list[int]) -> list[Odds | None]:
    """Of the rows that want them: the logarithm of the softmax over the whole row. Empty if none does."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.logprobs >= 0]
    if not rows:
        return []
    found: list[Odds | None] = [None] * len(sequences)
    wanted = [sequences[row].logprobs for row in rows]
    for row, told in zip(rows, _told(candidates, rows, [tokens[row] for row in rows], wanted), strict=True):
        found[row] = told
    return found


def of_prompt(candidates: Candidates, first: int, tokens: list[int], count: int) -> list[Odds]:
    """Of consecutive tokens of a prompt, and of so many of the likeliest: rows from this one on."""
    return _told(candidates, list(range(first, first + len(tokens))), tokens, [count] * len(tokens))


def _told(candidates: Candidates, rows: list[int], tokens: list[int], counts: list[int]) -> list[Odds]:
    found: list[Odds] = []
    for start in range(0, len(rows), ROWS):
        some, chosen = rows[start : start + ROWS], tokens[start : start + ROWS]
        logits = candidates.full()[some].astype(np.float64)
        peaks = logits.max(axis=1, keepdims=True)
        total = peaks + np.log(np.exp(logits - peaks).sum(axis=1, keepdims=True))
        own = np.maximum(logits[np.arange(len(some)), chosen] - total[:, 0], LEAST).tolist()
        best = np.maximum(candidates.logits[some] - total, LEAST).tolist()
        ids = candidates.ids[some].tolist()
        for at, count in enumerate(counts[start : start + ROWS]):
            found.append(Odds(own[at], ids[at][:count], best[at][:count]))
    return found
