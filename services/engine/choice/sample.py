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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from services.engine.choice import lone
from services.engine.choice.edits import Changed, Edits, changed
from services.engine.choice.lone import GREEDY, SLACK
from services.engine.choice.order import Order
from services.engine.steps.sequence import Sequence

Real = TypeVar("Real", np.float32, np.float64)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Masks = npt.NDArray[np.uint32]  # [rows, words of 32 tokens each]

LOWEST = np.finfo(np.float64).min

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
_ONE, _30, _27, _31, _11 = (np.uint64(n) for n in (1, 30, 27, 31, 11))


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser: every bit of the input reaches every bit of the output."""
    x = x ^ (x >> _30)
    x *= _MIX1
    x ^= x >> _27
    x *= _MIX2
    x ^= x >> _31
    return x


def uniform(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """The random number of each (seed, position), in [0, 1)."""
    bits = mix(mix(seeds + _GOLDEN) + (positions + _ONE) * _GOLDEN)
    bits >>= _11
    return bits.astype(np.float64) * 2.0**-53


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
        others = candidates.vocab - len(logits)
        place = lone.place(logits, others, sequence.sampling, sequence.answered)
        if place < 0:
            return []
        chosen.append(int(candidates.ids[row, place]))
    return chosen


def _chosen(rows: "_Rows", best: "_Best", wishes: "_Wishes") -> list[int]:
    """By what the beginnings tell; then by the few that are allowed, or by the whole weight of each row; at
    last by its order."""
    beginnings = _Beginnings.of(best, wishes)
    places = beginnings.settle(wishes)
    chosen: list[int] = best.ids[np.arange(len(places)), places].tolist()
    left = (places < 0).nonzero()[0]
    if not left.size:
        return chosen
    few = rows.few(left)
    tokens = {row: rows.of_few(row) for row in left[few].tolist()}
    wide = left[~(few | beginnings.closed[left] | beginnings.empty[left])]
    for row, place in _by_weight(rows, wide, beginnings, wishes):
        tokens[row] = int(best.ids[row, place]) if place >= 0 else -1
    for row in left.tolist():
        token = tokens.get(row, -1)
        chosen[row] = token if token >= 0 else _in_order(rows.whole([row], np.float64)[0], wishes, row)
    return chosen


def _by_weight(
    rows: "_Rows", wide: Ints, beginnings: "_Beginnings", wishes: "_Wishes"
) -> Iterator[tuple[int, int]]:
    """These rows and the places that their whole weights tell, or -1."""
    if not wide.size:
        return
    weights = _weigh(rows.whole(wide, np.float32), wishes.scale[wide]).tolist()
    for row, weight, sums in zip(wide.tolist(), weights, beginnings.cumulated[wide].tolist(), strict=True):
        rest, rough = weight - float(beginnings.known[row]), ROUGH * weight
        least = 0.0 if beginnings.cut[row] else max(0.0, rest - rough)
        bounds = (least, 0.0), (max(0.0, rest + rough), float(beginnings.edge[row]))
        yield row, lone.within(sums, bounds, float(wishes.top_p[row]), float(wishes.random[row]))


def _weigh(logits: Floats, scale: Doubles) -> Floats:
    """What each row weighs, as a share of its best token; right to within ROUGH."""
    logits -= logits.max(axis=1, keepdims=True)
    logits /= scale.astype(np.float32)[:, None]
    weights: Floats = np.exp(logits, out=logits).sum(axis=1)
    return weights


def _in_order(logits: Doubles, wishes: "_Wishes", row: int) -> int:
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


@dataclass(frozen=True, slots=True)
class _Best:
    """The beginnings of some rows' orders. A place without a token has a logit of minus infinity: what a mask
    forbids, wherever it is, and what a row is filled up with."""

    ids: Ints  # [rows, width]
    logits: Floats | Doubles  # [rows, width]
    limits: Floats | Doubles  # [rows]: no other token has a higher logit
    others: Ints  # [rows]: how many of those there are at most

    def leaders(self) -> list[int] | None:
        """The best token of each row, if all have one."""
        rows, first = np.arange(len(self.ids)), self.logits.argmax(axis=1)
        if (self.logits[rows, first] == -np.inf).any():
            return None
        ids: list[int] = self.ids[rows, first].tolist()
        return ids


@dataclass(frozen=True, slots=True)
class _Beginnings:
    """What they weigh, and what else there may be, as shares of each row's best token."""

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
        top = best.logits.max(axis=1)
        peaks = np.maximum(top, LOWEST)
        shares = np.empty((rows, width + 1))
        shares[:, :-1] = best.logits
        shares[:, -1] = np.minimum(best.limits, peaks)
        shares -= peaks[:, None]
        shares /= wishes.scale[:, None]
        np.exp(shares, out=shares)
        weight, edge = shares[:, :-1], shares[:, -1]
        cut = (wishes.min_p > 0) | (wishes.top_k < NO_LIMIT)
        closed = best.limits == -np.inf
        cumulated = weight.cumsum(axis=1)
        known = cumulated[:, -1]
        if cut.any():
            found = (best.logits > -np.inf).cumsum(axis=1)
            closed |= (edge < wishes.min_p) | (wishes.top_k <= found[:, -1])
            inside = (weight >= wishes.min_p[:, None]) & (found <= wishes.top_k[:, None])
            cumulated = np.where(inside, weight, 0.0).cumsum(axis=1)
        others = np.where(closed, 0.0, best.others * edge)
        return cls(cumulated, known, edge, others, closed, cut, top == -np.inf)

    def settle(self, wishes: _Wishes) -> Ints:
        """The place of each row's token, or -1 where the beginning of its order does not tell."""
        rows, width = self.cumulated.shape
        # All that is kept, if the others weigh nothing, and if they weigh as much as they can.
        kept = self.cumulated[:, -1] + np.array([[0.0], [1.0]]) * self.others
        slack = np.where(self.closed, 0.0, SLACK) * _BOTH_WAYS + 1.0
        kept *= slack
        last: Ints | int = width
        if (wishes.top_p < 1).any():
            # Where the last one is; beyond the end if it is not among these.
            kept *= wishes.top_p
            last = (self.cumulated < kept[:, :, None]).sum(axis=2)
            reached = self.cumulated[np.arange(rows), np.minimum(last, width - 1)]
            kept = np.where(last < width, reached, kept + self.edge * _AT_MOST) * slack
        mark = wishes.random * kept
        low, high = np.minimum((self.cumulated <= mark[:, :, None]).sum(axis=2), last)
        places: Ints = np.where((low == high) & (high < width), high, -1)
        greedy = wishes.temperature < GREEDY
        if greedy.any():
            places = np.where(greedy, np.where(self.empty, -1, (self.cumulated > 0).argmax(axis=1)), places)
        return places


_BOTH_WAYS = np.array([[-1.0], [1.0]])
_AT_MOST = np.array([[0.0], [1.0]])
"""The last token kept may weigh nothing, or as much as another token may."""


def _allows(mask: npt.NDArray[np.int32], token: int) -> bool:
    return token >> 5 < len(mask) and bool(mask[token >> 5] >> (token & 31) & 1)


def _together(sequences: list[Sequence], words: int) -> npt.NDArray[np.int32]:
    """The masks of all rows, one behind the other; everything is allowed in one that has none."""
    masks = [s.allowed for s in sequences]
    return np.concatenate([m if m is not None and len(m) == words else _fitted(m, words) for m in masks])


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


def _bars(masks: Masks | npt.NDArray[np.int32], vocab: int) -> Floats:
    """What masks add to rows of logits."""
    bars: Floats = BARS.take(masks.view(np.uint8), axis=0).reshape(len(masks), -1)[:, :vocab]
    return bars


def _set(places: list[int], words: list[int]) -> Iterator[int]:
    """The bits that are set in these words of a mask."""
    for place, word in zip(places, words, strict=True):
        left = word
        while left:
            yield 32 * place + (left & -left).bit_length() - 1
            left &= left - 1


class _Rows:
    """The rows of a step, as the requests have them: edited, and without what is forbidden."""

    def __init__(self, candidates: Candidates, sequences: list[Sequence]):
        self.vocab = candidates.vocab
        self._candidates = candidates
        self._sequences = sequences
        edits = [Edits.of(sequence, self.vocab) for sequence in sequences]
        self._changed: Changed | None = None
        if any(edits):
            self._changed = changed(sequences, self._full, edits)
        self._masks: Masks | None = None  # made with the beginnings of the rows' orders

    @cached_property
    def _full(self) -> Floats:
        return self._candidates.full()

    def whole(self, rows: Ints | list[int], kind: type[Real]) -> npt.NDArray[Real]:
        """All logits of these rows, to be written into."""
        logits = self._full[rows].astype(kind, copy=False)
        if self._changed is not None:
            place = np.full(len(self._sequences), -1)
            place[rows] = np.arange(len(rows))
            to = place[self._changed.rows]
            mine = to >= 0
            logits[to[mine], self._changed.ids[mine]] = self._changed.values[mine]
        if self._masks is not None:
            logits += _bars(self._masks[rows], self.vocab)
        return logits

    def few(self, rows: Ints) -> Bools:
        """Of which of these rows a mask leaves no more tokens than there are candidates."""
        if self._masks is None:
            return np.zeros(len(rows), np.bool_)
        counts: Ints = np.bitwise_count(self._masks[rows]).sum(axis=1, dtype=np.int64)
        few: Bools = counts <= self._candidates.ids.shape[1]
        return few

    def of_few(self, row: int) -> int:
        """The token of such a row; -1 if they do not tell."""
        assert self._masks is not None
        sequence, mask = self._sequences[row], self._masks[row]
        at = mask.nonzero()[0]
        ids = [id for id in _set(at.tolist(), mask[at].tolist()) if id < self.vocab]
        if len(ids) == 1:
            return ids[0]
        whole = self._full[row] if self._changed is None else self.whole([row], np.float64)[0]
        logits: list[float] = whole[ids].tolist()
        order = sorted(range(len(ids)), key=lambda place: -logits[place])
        place = lone.place([logits[at] for at in order], 0, sequence.sampling, sequence.answered)
        return ids[order[place]] if place >= 0 else -1

    def first(self) -> list[int] | None:
        """The best token of each row, if nothing is edited. The candidates are looked at one by one: the
        first is allowed in most rows, and NumPy takes longer than that to begin."""
        if self._changed is not None:
            return None
        first: list[int] = self._candidates.ids[:, 0].tolist()
        for row, (token, sequence) in enumerate(zip(first, self._sequences, strict=True)):
            if sequence.allowed is None or _allows(sequence.allowed, token):
                continue
            others = self._candidates.ids[row, 1:].tolist()
            found = next((other for other in others if _allows(sequence.allowed, other)), None)
            if found is None:
                mask = _fitted(sequence.allowed, (self.vocab + 31) // 32)
                logits = self._full[row] + _bars(mask[None], self.vocab)[0]
                found = int(logits.argmax())
            first[row] = found
        return first

    def best(self) -> _Best:
        c = self._candidates
        count, k = c.ids.shape
        limits = c.logits[:, -1] if k < self.vocab else np.full(count, -np.inf)
        best = _Best(c.ids, c.logits, limits, np.full(count, self.vocab - k))
        if self._changed is not None:
            best = self._merged(best, self._changed)
        return best if all(s.allowed is None for s in self._sequences) else self._without(best)

    def _without(self, best: _Best) -> _Best:
        """Without the tokens that a mask forbids."""
        words = (self.vocab + 31) // 32
        masks = _together(self._sequences, words)
        self._masks = masks.view(np.uint32).reshape(-1, words)
        at = best.ids >> 5
        at += np.arange(0, masks.size, words)[:, None]
        allowed = (masks.take(at) >> (best.ids & 31) & 1).astype(np.bool_)
        logits = np.where(allowed, best.logits, -np.inf)
        return _Best(best.ids, logits, best.limits, best.others)

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
        return _Best(*made, best.limits, self.vocab - sizes)
