"""Choosing tokens: all rows of a step at once, and each choice a pure function of (seed, position).

A successor that resumes from the committed tokens therefore chooses what its predecessor would have.

The rule, for every row by itself: the logits are edited (edits.py) and what a mask forbids is left out;
the rest is ordered, best first and equals by id. Of that order min_p, top_k and top_p each keep a
beginning, after the temperature, as in vLLM; the token is where the cumulated weight of what is kept
passes (random number * all of it).

A row is rarely looked at as a whole. The model gives its best tokens, and no other can weigh more than the
last of them: that bounds what the rest can weigh together, and if both bounds choose the same token, so
does the exact weight. Where they do not, the row's whole weight is computed, and at last its order: that is
in order.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from services.engine import lone
from services.engine.edits import Changed, Edits, changed
from services.engine.lone import SLACK
from services.engine.order import Order
from services.engine.sequence import Sequence

Real = TypeVar("Real", np.float32, np.float64)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Masks = npt.NDArray[np.uint32]  # [rows, words of 32 tokens each]

GREEDY = 1e-5
"""A temperature below this is zero, as in vLLM: nothing but the best token has any weight then."""

ROUGH = 1e-4
"""More than the rounding of a sum over any vocabulary in single precision, in both directions."""

FEW = 4
"""Rows that are looked at one by one: it is quicker than all at once."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The likeliest tokens of each row, best first; ties are in ascending order of id."""

    ids: Ints  # [rows, k]
    logits: Floats  # [rows, k]
    vocab: int
    full: Callable[[], Floats]  # [rows, vocab], as the model gave them; good until its next step

    def only(self, start: int, stop: int) -> "Candidates":
        """Of these rows."""
        return Candidates(
            self.ids[start:stop], self.logits[start:stop], self.vocab, lambda: self.full()[start:stop]
        )


Sampler = Callable[[Candidates, list[Sequence]], list[int]]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser: every bit of the input reaches every bit of the output."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _MIX1
        x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def uniform(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """The random number of each (seed, position), in [0, 1)."""
    with np.errstate(over="ignore"):
        bits = mix(mix(seeds + _GOLDEN) + (positions + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(candidates: Candidates, sequences: list[Sequence]) -> list[int]:
    """One token a row."""
    if len(sequences) <= FEW and (chosen := _one_by_one(candidates, sequences)):
        return chosen
    rows = _Rows(candidates, sequences)
    greedy = all(s.sampling.temperature < GREEDY for s in sequences)
    if greedy and (first := rows.first()):
        return first
    best = rows.best()
    if greedy and (first := best.leaders()):
        return first
    return _chosen(rows, best, _Wishes.of(sequences))


def _one_by_one(candidates: Candidates, sequences: list[Sequence]) -> list[int]:
    """What lone.py tells; nothing if there is a row of which it does not."""
    chosen = []
    for row, sequence in enumerate(sequences):
        if sequence.allowed is not None or Edits.of(sequence, candidates.vocab):
            return []
        logits = candidates.logits[row].tolist()
        if sequence.sampling.temperature < GREEDY:
            place = 0 if logits[0] > -np.inf else -1
        else:
            others = candidates.vocab - len(logits)
            place = lone.place(logits, others, sequence.sampling, sequence.answered)
        if place < 0:
            return []
        chosen.append(int(candidates.ids[row, place]))
    return chosen


def _chosen(rows: "_Rows", best: "_Best", wishes: "_Wishes") -> list[int]:
    """By what the beginnings tell; then by the whole weight of each row; and at last by its order."""
    beginnings = _Beginnings.of(best, wishes)
    places = beginnings.settle(wishes)
    chosen: list[int] = best.ids[np.arange(len(places)), places].tolist()
    left = np.flatnonzero(places < 0)
    if left.size:
        fewer = wishes.only(left)
        weights = _weigh(rows.whole(left, np.float32), fewer.scale)
        places = beginnings.only(left).settle(fewer, weights)
        for row, place in zip(left.tolist(), places.tolist(), strict=True):
            chosen[row] = int(best.ids[row, place])
        left = left[places < 0]
    for row, logits in zip(left.tolist(), rows.whole(left, np.float64) if left.size else (), strict=True):
        chosen[row] = _choose_in_order(logits, wishes, row)
    return chosen


def _weigh(logits: Floats, scale: Doubles) -> Doubles:
    """What each row weighs, as a share of its best token; right to within ROUGH."""
    logits -= np.maximum(logits.max(axis=1, keepdims=True), np.finfo(np.float32).min)
    logits /= scale.astype(np.float32)[:, None]
    weights: Doubles = np.exp(logits, out=logits).sum(axis=1).astype(np.float64)
    return weights


def _choose_in_order(logits: Doubles, wishes: "_Wishes", row: int) -> int:
    temperature, top_k, top_p = wishes.temperature[row], int(wishes.top_k[row]), wishes.top_p[row]
    if temperature < GREEDY or logits.max() == -np.inf:
        return int(logits.argmax())
    order = Order(logits, temperature, wishes.min_p[row])
    kept = order.first(top_k)
    if top_p < 1:
        # The last one kept is the first that reaches the share: weighs more than anything below it.
        _, kept = order.at(np.nextafter(top_p * kept, 0.0))
    token, _ = order.at(wishes.random[row] * kept)
    return token


NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the sequences want, a row each."""

    temperature: Doubles
    scale: Doubles  # what logits are divided by: the temperature, or 1 where that is as good as zero
    top_p: Doubles
    min_p: Doubles
    top_k: Doubles
    random: Doubles

    @classmethod
    def of(cls, sequences: list[Sequence]) -> "_Wishes":
        wanted = [s.sampling for s in sequences]
        numbers = [(w.temperature, w.top_p, w.min_p, w.top_k or NO_LIMIT) for w in wanted]
        temperature, top_p, min_p, top_k = np.array(numbers, np.float64).T
        seeds = np.array([w.seed for w in wanted], np.uint64)
        positions = np.array([s.answered for s in sequences], np.uint64)
        scale = np.where(temperature < GREEDY, 1.0, temperature)
        return cls(temperature, scale, top_p, min_p, top_k, uniform(seeds, positions))

    def only(self, rows: Ints) -> "_Wishes":
        return _Wishes(
            self.temperature[rows],
            self.scale[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.top_k[rows],
            self.random[rows],
        )


@dataclass(frozen=True, slots=True)
class _Best:
    """The beginnings of some rows' orders. A place without a token has a logit of minus infinity: what a mask
    forbids, wherever it is, and what a row is filled up with."""

    ids: Ints  # [rows, width]
    logits: Doubles  # [rows, width]
    first: Ints  # [rows]: the place of the best
    limits: Doubles  # [rows]: no other token has a higher logit
    others: Ints  # [rows]: how many of those there are

    def leaders(self) -> list[int] | None:
        """The best token of each row, if all have one."""
        rows = np.arange(len(self.first))
        if (self.logits[rows, self.first] == -np.inf).any():
            return None
        ids: list[int] = self.ids[rows, self.first].tolist()
        return ids


@dataclass(frozen=True, slots=True)
class _Beginnings:
    """What they weigh, and what else there may be, as shares of each row's best token."""

    first: Ints  # the place of the best
    cumulated: Doubles  # [rows, width], of what is kept
    known: Doubles  # all of the beginning, kept or not
    edge: Doubles  # another token at most
    others: Doubles  # all others at most
    closed: Bools  # nothing else is kept
    cut: Bools  # not all of the rest need be kept
    empty: Bools  # there is no beginning

    @classmethod
    def of(cls, best: _Best, wishes: _Wishes) -> "_Beginnings":
        rows, width = best.ids.shape
        top = best.logits[np.arange(rows), best.first]
        peaks = np.maximum(top, np.finfo(np.float64).min)
        shares = np.empty((rows, width + 1))
        shares[:, :-1] = best.logits
        shares[:, -1] = np.minimum(best.limits, peaks)
        shares -= peaks[:, None]
        shares /= wishes.scale[:, None]
        np.exp(shares, out=shares)
        weight, edge = shares[:, :-1], shares[:, -1]
        found = (best.logits > -np.inf).cumsum(axis=1)
        cut = (wishes.min_p > 0) | (wishes.top_k < NO_LIMIT)
        closed = (best.limits == -np.inf) | (edge < wishes.min_p) | (wishes.top_k <= found[:, -1])
        kept = weight
        if cut.any():
            inside = (weight >= wishes.min_p[:, None]) & (found <= wishes.top_k[:, None])
            kept = np.where(inside, weight, 0.0)
        others = np.where(closed, 0.0, best.others * edge)
        cumulated, known = np.cumsum(kept, axis=1), weight.sum(axis=1)
        return cls(best.first, cumulated, known, edge, others, closed, cut, top == -np.inf)

    def only(self, rows: Ints) -> "_Beginnings":
        return _Beginnings(
            self.first[rows],
            self.cumulated[rows],
            self.known[rows],
            self.edge[rows],
            self.others[rows],
            self.closed[rows],
            self.cut[rows],
            self.empty[rows],
        )

    def settle(self, wishes: _Wishes, weights: Doubles | None = None) -> Ints:
        """The place of each row's token, or -1 where the beginning of its order does not tell.

        `weights`: of all tokens of each row, where it is known, as `_weigh` knows it.
        """
        rows, width = self.cumulated.shape
        # How much the others weigh: at least and at most. What is cut off counts nothing.
        rest = np.zeros((2, rows))
        if weights is None:
            rest[1] = self.others
        else:
            rest[0] = np.where(self.closed | self.cut, 0.0, weights - self.known - ROUGH * weights)
            rest[1] = np.where(self.closed, 0.0, weights - self.known + ROUGH * weights)
            np.maximum(rest, 0.0, out=rest)
        slack = np.where(self.closed, 0.0, SLACK) * _BOTH_WAYS + 1.0
        # Where the token is if the others weigh so much; beyond the end if it is not among these.
        enough = wishes.top_p * (self.cumulated[:, -1] + rest) * slack
        last = (self.cumulated < enough[:, :, None]).sum(axis=2)
        reached = self.cumulated[np.arange(rows), np.minimum(last, width - 1)]
        kept = np.where(last < width, reached, enough + self.edge * _AT_MOST)
        mark = wishes.random * kept * slack
        low, high = np.minimum((self.cumulated <= mark[:, :, None]).sum(axis=2), last)
        places: Ints = np.where((low == high) & (high < width), high, -1)
        places = np.where(wishes.temperature < GREEDY, self.first, places)
        places[self.empty] = -1
        return places


_BOTH_WAYS = np.array([[-1.0], [1.0]])
_AT_MOST = np.array([[0.0], [1.0]])
"""The last token kept may weigh nothing, or as much as another token may."""


def _masks(sequences: list[Sequence], vocab: int) -> Masks | None:
    """Of all rows; everything is allowed in one that has none. None if none has."""
    if all(s.allowed is None for s in sequences):
        return None
    words = (vocab + 31) // 32
    masks = np.concatenate([_fitted(s.allowed, words) for s in sequences]).view(np.uint32).reshape(-1, words)
    if vocab % 32:
        masks[:, -1] &= np.uint32((1 << vocab % 32) - 1)
    return masks


def _allows(mask: npt.NDArray[np.int32], token: int) -> bool:
    return token >> 5 < len(mask) and bool(mask[token >> 5] >> (token & 31) & 1)


def _fitted(mask: npt.NDArray[np.int32] | None, words: int) -> npt.NDArray[np.int32]:
    """A grammar may know more tokens than the model, or fewer."""
    if mask is None:
        return np.full(words, -1, np.int32)
    return mask if len(mask) == words else np.pad(mask[:words], (0, max(0, words - len(mask))))


BARS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.float32(0),
    np.float32(-np.inf),
)
"""What a byte of a mask adds to eight logits: nothing, or minus infinity."""


class _Rows:
    """The rows of a step, as the requests have them: edited, and without what is forbidden."""

    def __init__(self, candidates: Candidates, sequences: list[Sequence]):
        self.vocab = candidates.vocab
        self._candidates = candidates
        self._sequences = sequences
        edits = [Edits.of(sequence, self.vocab) for sequence in sequences]
        self._changed: Changed | None = None
        if any(edits):
            self._changed = changed(sequences, candidates.full(), edits)
        self._masks: Masks | None = None  # made with the beginnings of the rows' orders

    def whole(self, rows: Ints, kind: type[Real]) -> npt.NDArray[Real]:
        """All logits of these rows, to be written into."""
        logits = self._candidates.full()[rows].astype(kind, copy=False)
        if self._changed is not None:
            place = np.full(len(self._sequences), -1)
            place[rows] = np.arange(len(rows))
            to = place[self._changed.rows]
            mine = to >= 0
            logits[to[mine], self._changed.ids[mine]] = self._changed.values[mine]
        if self._masks is not None:
            masks = self._masks[rows].view(np.uint8)
            logits += BARS.take(masks, axis=0).reshape(len(rows), -1)[:, : self.vocab]
        return logits

    def first(self) -> list[int] | None:
        """The best token of each row, if the candidates tell it as they are. They are looked at one by one:
        the first is allowed in most rows, and NumPy takes longer than that to begin."""
        if self._changed is not None:
            return None
        first: list[int] = self._candidates.ids[:, 0].tolist()
        for row, (token, sequence) in enumerate(zip(first, self._sequences, strict=True)):
            if sequence.allowed is None or _allows(sequence.allowed, token):
                continue
            others = self._candidates.ids[row, 1:].tolist()
            found = next((other for other in others if _allows(sequence.allowed, other)), None)
            if found is None:
                return None
            first[row] = found
        return first

    def best(self) -> _Best:
        self._masks = _masks(self._sequences, self.vocab)
        c = self._candidates
        count, k = c.ids.shape
        logits = c.logits.astype(np.float64)
        limits = logits[:, -1] if k < self.vocab else np.full(count, -np.inf)
        best = _Best(c.ids, logits, np.zeros(count, np.int64), limits, np.full(count, self.vocab - k))
        if self._changed is not None:
            best = self._merged(best, self._changed)
        return best if self._masks is None else self._without(best, self._masks)

    def _without(self, best: _Best, masks: Masks) -> _Best:
        """Without the tokens that a mask forbids. Where it leaves but few, and none of them is among these,
        these are replaced by all of them."""
        at = (best.ids >> 5) + np.arange(0, masks.size, masks.shape[1])[:, None]
        allowed = masks.take(at) >> (best.ids & 31).astype(np.uint32) & 1
        ids, logits, first = best.ids, np.where(allowed, best.logits, -np.inf), allowed.argmax(axis=1)
        counts = np.bitwise_count(masks).sum(axis=1, dtype=np.int64)
        found = (logits > -np.inf).sum(axis=1)
        others = counts - found
        few = np.flatnonzero((found == 0) & (counts <= ids.shape[1]))
        if few.size:
            ids = ids.copy()
            self._complete(few, masks[few], ids, logits)
            first[few] = others[few] = 0
        return _Best(ids, logits, first, np.where(others > 0, best.limits, -np.inf), others)

    def _complete(self, few: Ints, masks: Masks, ids: Ints, logits: Doubles) -> None:
        """Of a few rows: all tokens that are allowed, in their order."""
        at, words = np.nonzero(masks)
        which, bits = np.nonzero(masks[at, words][:, None] >> np.arange(32, dtype=np.uint32) & 1)
        at, tokens = at[which], 32 * words[which] + bits
        values = self._at(few[at], tokens)
        order = np.lexsort((-values, at))
        column = np.arange(len(at)) - np.searchsorted(at, at)
        ids[few], logits[few] = 0, -np.inf
        ids[few[at], column], logits[few[at], column] = tokens[order], values[order]

    def _at(self, rows: Ints, ids: Ints) -> Doubles:
        """The logits of some tokens, in ascending order of row and id."""
        values: Doubles = self._candidates.full()[rows, ids].astype(np.float64)
        if self._changed is not None:
            here = rows * self.vocab + ids
            changed = self._changed.rows * self.vocab + self._changed.ids
            places = np.minimum(np.searchsorted(here, changed), len(here) - 1)
            hit = here[places] == changed
            values[places[hit]] = self._changed.values[hit]
        return values

    def _merged(self, best: _Best, changed: Changed) -> _Best:
        """The order with the changed tokens at their new places, as far as it is known: to where the last
        candidate was, below which there may be tokens that nobody has looked at."""
        count, k = best.ids.shape
        to = changed.rows
        end, end_id = best.limits[to], best.ids[to, -1]
        known = (changed.values > end) | ((changed.values == end) & (changed.ids <= end_id))
        known &= changed.values > -np.inf
        rows = np.repeat(np.arange(count), k)
        touched = np.zeros((count, self.vocab), np.bool_)  # its pages are not there until they are written
        touched[to, changed.ids] = True
        same = touched[rows, best.ids.ravel()]
        rows = np.concatenate([rows[~same], to[known]])
        ids = np.concatenate([best.ids.ravel()[~same], changed.ids[known]])
        logits = np.concatenate([best.logits.ravel()[~same], changed.values[known]])
        order = np.lexsort((ids, -logits, rows))
        rows, ids, logits = rows[order], ids[order], logits[order]
        sizes = np.bincount(rows, minlength=count)
        column = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        shape = (count, max(int(sizes.max()), 1))
        made = np.zeros(shape, np.int64), np.full(shape, -np.inf)
        made[0][rows, column], made[1][rows, column] = ids, logits
        return _Best(*made, np.zeros(count, np.int64), best.limits, self.vocab - sizes)
