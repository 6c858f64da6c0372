"""A model that others exported, as the step loop sees any model: its rows are one run, its chunk another."""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from millrace import models
from millrace.guest import caches, form
from millrace.guest.caches import Cache, Floats, Grown, InPlace, Part
from millrace.settings import SettingError
from services.engine.choice.sample import Candidates, Ints
from services.engine.model.session import cores
from services.engine.steps.prefix import Keeper
from services.engine.steps.scheduler import Copy, Step

CANDIDATES = 64

log = logging.getLogger("millrace.engine")


def opened(model: models.Model, slots: int, max_len: int, machine: str) -> "GuestModel":
    """SettingError if it cannot run; its exactness is told in the log."""
    try:
        made = GuestModel(model.folder, slots, min(max_len or model.max_len, model.max_len), machine)
    except ValueError as error:
        raise SettingError(f"model: {error}") from None
    for line in made.card.exactness:
        log.info("%s: %s", model.name, line)
    return made


class GuestModel:
    exact = False
    places = 0  # a prefix that another sequence computed need not have the bits that this one would have
    block = np.empty(0, np.float32)
    shelf: Keeper | None = None

    def __init__(self, folder: Path, slots: int, max_len: int, machine: str = ""):
        self.card = form.load(folder)
        self.kind = hashlib.sha256(f"{self.card.digest} {machine} {cores()}".encode()).hexdigest()[:16]
        run = caches.opened(folder / self.card.graph, cores())
        self._cache: Cache = (
            InPlace(run, self.card.form, slots, max_len)
            if self.card.in_place
            else Grown(run, self.card.form, slots)
        )

    def run(self, step: Step) -> Candidates:
        for swap in step.swaps:
            self._cache.swap(swap.first, swap.first_tokens, swap.second, swap.second_tokens)
        found = []
        if step.rows:
            found.append(self._rows([Part(s.slot, s.computed, [s.tokens[s.computed]]) for s in step.rows]))
        if chunk := step.chunk:
            words = chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
            # Not every graph tells more than what comes after the last word.
            each = [[word] for word in words] if step.heard else [words]
            after = [
                self._cache.advance([Part(chunk.sequence.slot, chunk.start + at, part)])
                for at, part in enumerate(each)
            ]
            if chunk.last:
                found.append(after[-1])
            found += after[: len(step.heard)]
        logits = np.concatenate(found) if found else np.zeros((0, self.card.vocab), np.float32)
        ids = best(logits, min(CANDIDATES, self.card.vocab))
        return Candidates(ids, np.take_along_axis(logits, ids, axis=1), self.card.vocab, lambda: logits)

    def copy(self, copies: Iterable[Copy]) -> None:
        assert not list(copies), "there is no pool"

    def _rows(self, parts: list[Part]) -> Floats:
        """In the order of the step, whatever slots they have."""
        if not self.card.batch:
            return np.concatenate([self._cache.advance([part]) for part in parts])
        by_slot = sorted(range(len(parts)), key=lambda i: parts[i].slot)
        logits = np.empty((len(parts), self.card.vocab), np.float32)
        logits[by_slot] = self._cache.advance([parts[i] for i in by_slot])
        return logits


def best(logits: Floats, count: int) -> Ints:
    """The likeliest tokens of each row, best first, equals in ascending order of id."""
    found = np.empty((len(logits), count), np.int64)
    for row, values in enumerate(logits):
        least = np.partition(values, -count)[-count]
        above = np.flatnonzero(values > least)
        ids = np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]])
        found[row] = ids[np.lexsort((ids, -values[ids]))]
    return found
