"""What a request changes of a row of logits: a bias, penalties, and stop tokens that have to wait.

That is few tokens of many: those named by the request, and those of its own text. Each sequence keeps a
table of them, so that a step has only the newest token to add, and computes the new values of all rows at
once. The order and the formulas are vLLM's:

    bias           logit + bias[token]
    min_tokens     a stop token is impossible before that many tokens
    repetition     of a token of the prompt or the answer: logit / r if it is above zero, else logit * r
    frequency      logit - f * (how often the answer has the token)
    presence       logit - p, if the answer has the token
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.engine.steps.sequence import Sequence

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BIAS, STOP, SEEN, COUNT = range(4)
"""The table's columns: what to add, whether it is a stop token, how often the prompt and the answer have it,
and how often the answer does."""


class Edits:
    """Of one sequence: a pure function of its request and its tokens so far."""

    def __init__(self, sequence: Sequence, vocab: int):
        sampling = sequence.sampling
        self._of_prompt = sampling.repetition != 1
        self._of_answer = self._of_prompt or sampling.presence != 0 or sampling.frequency != 0
        self._read = 0
        # An id beyond the model's logits changes nothing.
        stops = sequence.stop_ids if sequence.min_tokens else frozenset()
        named = [id for id in sorted({*sampling.bias, *stops}) if id < vocab]
        self._place = {id: place for place, id in enumerate(named)}
        self.size = len(named)
        self.ids = np.zeros(max(64, 2 * self.size), np.int64)
        self.table = np.zeros((4, len(self.ids)))
        self.ids[: self.size] = named
        self.table[BIAS, : self.size] = [sampling.bias.get(id, 0.0) for id in named]
        self.table[STOP, : self.size] = [id in stops for id in named]

    @staticmethod
    def of(sequence: Sequence, vocab: int) -> "Edits | None":
        """Up to date; None if the request changes nothing at this place."""
        s = sequence.sampling
        if not (s.bias or s.repetition != 1 or s.presence or s.frequency or sequence.unstoppable):
            return None
        edits = sequence.edits
        if not isinstance(edits, Edits):
            edits = sequence.edits = Edits(sequence, vocab)
        edits._follow(sequence)
        return edits

    def _follow(self, sequence: Sequence) -> None:
        if not self._of_answer:
            return
        tokens, answer = sequence.tokens, sequence.prompt_len
        for at in range(self._read if self._of_prompt else max(self._read, answer), len(tokens)):
            place = self._place.get(tokens[at])
            if place is None:
                place = self._add(tokens[at])
            self.table[SEEN, place] += 1
            self.table[COUNT, place] += at >= answer
        self._read = len(tokens)

    def forget(self, tokens: list[int], length: int) -> None:
        """Of these tokens all but so many: they were not said after all. The prompt always was."""
        for at in range(length, self._read):
            place = self._place[tokens[at]]
            self.table[SEEN, place] -= 1
            self.table[COUNT, place] -= 1
        self._read = min(self._read, length)

    def _add(self, token: int) -> int:
        place = self._place[token] = self.size
        if place == len(self.ids):
            self.ids = np.concatenate([self.ids, np.zeros_like(self.ids)])
            self.table = np.concatenate([self.table, np.zeros_like(self.table)], axis=1)
        self.ids[place] = token
        self.size += 1
        return place


@dataclass(frozen=True, slots=True)
class Changed:
    """Changed logits, in ascending order of the row."""

    rows: Ints
    ids: Ints
    values: Doubles


def changed(sequences: list[Sequence], logits: npt.NDArray[np.float32], edits: list[Edits | None]) -> Changed:
    """What the edits make of these sequences' rows of logits."""
    at = [row for row, each in enumerate(edits) if each]
    those = [each for each in edits if each]
    sizes = [each.size for each in those]
    rows = np.repeat(np.array(at, np.int64), sizes)
    ids = np.concatenate([each.ids[: each.size] for each in those])
    bias, stop, seen, count = np.concatenate([each.table[:, : each.size] for each in those], axis=1)
    wanted = [
        (s.repetition, s.frequency, s.presence, sequences[row].unstoppable)
        for row, s in ((row, sequences[row].sampling) for row in at)
    ]
    repetition, frequency, presence, early = np.repeat(np.array(wanted, np.float64).T, sizes, axis=1)

    values = logits[rows, ids].astype(np.float64) + bias
    values[(stop * early) > 0] = -np.inf
    values = np.where(seen > 0, np.where(values > 0, values / repetition, values * repetition), values)
    values -= frequency * count + presence * (count > 0)
    return Changed(rows, ids, values)
