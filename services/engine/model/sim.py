"""A model without weights: the next token is a function of *all* tokens so far, and steps take time.

Each slot holds running hashes where a real model holds keys and values. Feed it one wrong token, in
one wrong place, and everything after differs: that is what makes it a good witness.
"""

import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from millrace.models import words
from services.engine.choice.sample import Candidates, mix
from services.engine.steps.prefix import BLOCK, Keeper
from services.engine.steps.scheduler import Copy, Fetch, Keep, Load, Shelve, Step

MASK = (1 << 64) - 1
CANDIDATES = 32
BLOCK_BYTES = BLOCK << 10
"""What a block of prefixes counts for: a small model's keys and values are some KiB a token."""

FLOOR = -12.0
"""The logit of every other word: all of them together weigh as good as nothing."""


@dataclass(frozen=True)
class Costs:
    """Seconds. Near enough to a small model on two cores to plan with; all may be zero."""

    step: float = 0.004
    row: float = 0.00025
    token: float = 0.0001

    def of(self, step: Step) -> float:
        prefilled = step.chunk.count if step.chunk else 0
        return self.step + self.row * len(step.rows) + self.token * prefilled


@dataclass(frozen=True)
class Vocabulary:
    words: list[int]  # what it may say
    eos: int

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """From a tokenizer's own files; the engine needs the ids alone."""
        tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
        eos = json.loads((folder / "tokenizer_config.json").read_bytes())["eos_token"]
        ids = words(tokenizer)
        special = {t["id"] for t in tokenizer["added_tokens"] if t["special"]}
        return cls(sorted(set(ids.values()) - special), ids[eos])


class SimModel:
    def __init__(
        self,
        slots: int,
        vocabulary: Vocabulary,
        *,
        costs: Costs | None = None,
        eos_chance: float = 0.004,
        poison_seed: int = -1,
        kind: int = 0,
        places: int = 0,
    ):
        """Models of another `kind` differ now and then, as another processor's arithmetic would; `places` are
        for the blocks of prefixes."""
        self.exact = True
        self.kind = f"sim {kind}"
        self._kind = kind
        self.places = places
        self.block = np.empty(BLOCK + 1, np.uint64)
        self.shelf: Keeper | None = None
        self._slots = [[0] for _ in range(slots)]  # the hash before the first token, and after each
        self._pool: dict[int, list[int]] = {}  # the same of a block
        # The first word is never a candidate: it is the best of the rest.
        self._rest, *words = vocabulary.words
        self._words = np.array(words, dtype=np.int64)
        self._eos = vocabulary.eos
        self._eos_mark = int(eos_chance * MASK)
        self._costs = costs or Costs()
        self._poison_seed = poison_seed
        # A stride without a divisor in common with their number meets no word twice.
        strides = range(1, min(len(words), 1024))
        self._strides = np.array([n for n in strides if math.gcd(n, len(words)) == 1], np.uint64)
        self._ranks = np.arange(min(CANDIDATES, len(words)), dtype=np.uint64)
        self._row = np.full(max(*vocabulary.words, vocabulary.eos) + 1, -np.inf, np.float32)
        self._row[vocabulary.words] = FLOOR
        self._row[vocabulary.eos] = FLOOR - 1

    def run(self, step: Step) -> Candidates:
        if self._costs.step:
            time.sleep(self._costs.of(step))
        if self._poison_seed >= 0 and any(s.sampling.seed == self._poison_seed for s in step.sequences):
            os.abort()
        self.copy(step.copies)
        for swap in step.swaps:
            held = self._slots
            held[swap.first], held[swap.second] = held[swap.second], held[swap.first]
        assert {row.slot for row in step.rows} == set(range(len(step.rows))), "rows hold the first slots"
        for row in step.rows:
            self._feed(row.slot, row.computed, row.tokens[row.computed : row.computed + 1])
        if step.chunk:
            sequence, start = step.chunk.sequence, step.chunk.start
            self._feed(sequence.slot, start, step.chunk.tokens)
        states = [self._slots[s.slot][-1] for s in step.rows]
        if step.chunk and step.chunk.last:
            states += self._slots[step.chunk.sequence.slot][-1 - len(step.guesses) :]
        if step.chunk and step.heard:
            states += self._slots[step.chunk.sequence.slot][step.heard.start : step.heard.stop]
        return self._candidates(states)

    def _feed(self, slot: int, start: int, tokens: list[int]) -> None:
        states = self._upto(slot, start)
        for token in tokens:
            state = ((states[-1] ^ token) * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & MASK
            states.append(state ^ state >> 29)

    def copy(self, copies: Iterable[Copy]) -> None:
        for copy in copies:
            match copy:
                case Keep(slot, start, places):
                    for i, place in enumerate(places):
                        at = start + i * BLOCK
                        self._pool[place] = self._slots[slot][at : at + BLOCK + 1]
                        assert len(self._pool[place]) == BLOCK + 1, f"slot {slot} has no block at {at}"
                case Load(slot, start, places):
                    self._take(slot, start, [self._pool[place] for place in places])
                case Fetch(slot, start, contents):
                    self._take(slot, start, [content.tolist() for content in contents])
                case Shelve(name, place):
                    assert self.shelf is not None
                    self.shelf.put(name, np.array(self._pool[place], np.uint64))

    def _take(self, slot: int, start: int, blocks: list[list[int]]) -> None:
        states = self._upto(slot, start)
        for block in blocks:
            assert states[-1] == block[0], f"another sequence's block at {len(states) - 1}"
            states += block[1:]

    def _upto(self, slot: int, count: int) -> list[int]:
        """What a slot holds of its first tokens; what comes after them is forgotten."""
        states = self._slots[slot]
        assert len(states) > count, f"slot {slot} holds {len(states) - 1} tokens, not {count}"
        del states[count + 1 :]
        return states

    def _candidates(self, states: list[int]) -> Candidates:
        """A geometric slope over hashed words, so that sampling has something to choose from."""
        states = [s ^ (self._kind << 40) if s % 5 == 0 else s for s in states]
        start = mix(np.array(states, dtype=np.uint64).reshape(-1, 1))
        stride = self._strides[(mix(start) % np.uint64(len(self._strides))).astype(np.int64)]
        count = np.uint64(len(self._words))
        ids = np.full((len(states), len(self._ranks) + 1), self._rest, np.int64)
        ids[:, :-1] = self._words[((start % count + self._ranks * stride) % count).astype(np.int64)]
        logits = np.full(ids.shape, FLOOR, np.float32)
        logits[:, :-1] = np.linspace(4.0, 0.0, len(self._ranks), dtype=np.float32)
        ends = start[:, 0] < np.uint64(self._eos_mark)
        ids[ends, 0] = self._eos
        logits[ends, 0] = 50.0

        def full() -> npt.NDArray[np.float32]:
            rows = np.tile(self._row, (len(states), 1))
            np.put_along_axis(rows, ids, logits, axis=1)
            return rows

        return Candidates(ids, logits, len(self._row), full)
