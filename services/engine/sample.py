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

from services.engine.edits import Changed, Edits, changed
from services.engine.order import Order
from services.engine.sequence import Sequence

Real = TypeVar("Real", np.float32, np.float64)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GREEDY = 1e-5
"""A temperature below this is zero, as in vLLM: nothing but the best token has any weight then."""

ROUGH = 1e-4
"""More than the rounding of a sum over any vocabulary in single precision, in both directions."""

SLACK = 1e-9
"""The same of double precision."""


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
    rows = _Rows(candidates, sequences)
    best = rows.best()
    if all(s.sampling.temperature < GREEDY for s in sequences):
        wishes, places = None, np.where(best.logits[:, 0] > -np.inf, 0, -1)
    else:
        wishes = _Wishes.of(sequences)
        places = _settle(best, wishes)
    chosen = best.ids[np.arange(len(sequences)), np.maximum(places, 0)]
    undecided = np.flatnonzero(places < 0)
    if undecided.size:
        chosen[undecided] = _choose_exactly(rows, best, wishes or _Wishes.of(sequences), undecided)
    tokens: list[int] = chosen.tolist()
    return tokens


def _choose_exactly(rows: "_Rows", best: "_Best", wishes: "_Wishes", undecided: Ints) -> list[int]:
    """With the whole weight of each row; and where that is not enough, with its order."""
    best, wishes = best.only(undecided), wishes.only(undecided)
    places = _settle(best, wishes, _weigh(rows.whole(undecided, np.float32), wishes.temperature))
    chosen: list[int] = best.ids[np.arange(len(undecided)), np.maximum(places, 0)].tolist()
    left = np.flatnonzero(places < 0)
    for i, logits in zip(left.tolist(), rows.whole(undecided[left], np.float64), strict=True):
        chosen[i] = _choose_in_order(logits, wishes, i)
    return chosen


def _weigh(logits: Floats, temperature: Doubles) -> Doubles:
    """What each row weighs, as a share of its best token; right to within ROUGH."""
    peaks = logits.max(axis=1, keepdims=True)
    logits -= np.where(np.isfinite(peaks), peaks, np.float32(0))
    logits /= np.where(temperature < GREEDY, 1.0, temperature).astype(np.float32)[:, None]
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


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the sequences want, a row each."""

    temperature: Doubles
    top_p: Doubles
    min_p: Doubles
    top_k: Ints
    random: Doubles

    @classmethod
    def of(cls, sequences: list[Sequence]) -> "_Wishes":
        wanted = [s.sampling for s in sequences]
        seeds = np.array([w.seed for w in wanted], np.uint64)
        positions = np.array([s.answered for s in sequences], np.uint64)
        return cls(
            np.array([w.temperature for w in wanted], np.float64),
            np.array([w.top_p for w in wanted], np.float64),
            np.array([w.min_p for w in wanted], np.float64),
            np.array([w.top_k or NO_LIMIT for w in wanted], np.int64),
            uniform(seeds, positions),
        )

    def only(self, rows: Ints | list[int]) -> "_Wishes":
        return _Wishes(
            self.temperature[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.top_k[rows],
            self.random[rows],
        )


NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class _Best:
    """The beginnings of some rows' orders, filled up with logits of minus infinity."""

    ids: Ints  # [rows, width]
    logits: Doubles  # [rows, width]
    limits: Doubles  # [rows]: no other token has a higher logit
    others: Ints  # [rows]: how many of those there are

    def only(self, rows: Ints) -> "_Best":
        return _Best(self.ids[rows], self.logits[rows], self.limits[rows], self.others[rows])


def _weights(logits: Doubles, peaks: Doubles, temperature: Doubles) -> Doubles:
    """Each weight as a share of the best token's."""
    peaks = np.where(np.isfinite(peaks), peaks, 0.0)
    scale = np.where(temperature < GREEDY, 1.0, temperature)
    weights: Doubles = np.exp((logits - peaks[:, None]) / scale[:, None])
    return weights


def _settle(best: _Best, wishes: _Wishes, weights: Doubles | None = None) -> Ints:
    """The place of each row's token, or -1 where the beginning of its order does not tell.

    `weights`: of all tokens of each row, where it is known, as `_weigh` knows it.
    """
    rows, width = best.ids.shape
    peaks = best.logits[:, 0]
    weight = _weights(best.logits, peaks, wishes.temperature)
    found = (best.logits > -np.inf).sum(axis=1)
    # The most that another token may weigh.
    edge = _weights(np.minimum(best.limits, peaks)[:, None], peaks, wishes.temperature)[:, 0]
    closed = (best.limits == -np.inf) | (edge < wishes.min_p) | (wishes.top_k <= found)

    # How much the others weigh: at least and at most. What is cut off counts nothing.
    if weights is None:
        least, most = np.zeros(rows), best.others * edge
    else:
        rest = weights - weight.sum(axis=1)
        least, most = np.maximum(rest - ROUGH * weights, 0.0), np.maximum(rest + ROUGH * weights, 0.0)
    cut = (wishes.min_p > 0) | (wishes.top_k < NO_LIMIT)
    least[closed | cut] = 0.0
    most[closed] = 0.0
    kept = (weight >= wishes.min_p[:, None]) & (np.arange(width) < wishes.top_k[:, None])
    cumulated = np.cumsum(np.where(kept, weight, 0.0), axis=1)
    inside = cumulated[:, -1]

    slack = np.where(closed, 0.0, SLACK)
    low = _place(cumulated, wishes, inside + least, np.zeros(rows), 1.0 - slack)
    high = _place(cumulated, wishes, inside + most, edge, 1.0 + slack)
    places = np.where((low == high) & (high < width), high, -1)
    places[wishes.temperature < GREEDY] = 0
    places[found == 0] = -1
    return places


def _place(cumulated: Doubles, wishes: _Wishes, total: Doubles, edge: Doubles, slack: Doubles) -> Ints:
    """Where a row's token is if all tokens weigh `total`; beyond the end if it is not among these.

    `edge`: what the last token kept may weigh at most, if it is not among these.
    """
    rows, width = cumulated.shape
    enough = wishes.top_p * total * slack
    last = (cumulated < enough[:, None]).sum(axis=1)
    reached = cumulated[np.arange(rows), np.minimum(last, width - 1)]
    kept = np.where(last < width, reached, enough + edge)
    mark = wishes.random * kept * slack
    place: Ints = np.minimum((cumulated <= mark[:, None]).sum(axis=1), last)
    return place


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

    def whole(self, rows: Ints, kind: type[Real]) -> npt.NDArray[Real]:
        """All logits of these rows, to be written into."""
        logits = self._candidates.full()[rows].astype(kind, copy=False)
        if self._changed is not None:
            place = np.full(len(self._sequences), -1)
            place[rows] = np.arange(len(rows))
            to = place[self._changed.rows]
            mine = to >= 0
            logits[to[mine], self._changed.ids[mine]] = self._changed.values[mine]
        for i, row in enumerate(rows.tolist()):
            allowed = self._sequences[row].allowed
            if allowed is not None:
                bits = np.unpackbits(allowed.view(np.uint8), count=self.vocab, bitorder="little")
                logits[i, bits == 0] = -np.inf
        return logits

    def best(self) -> _Best:
        c = self._candidates
        count, k = c.ids.shape
        logits = c.logits.astype(np.float64)
        limits = logits[:, -1] if k < self.vocab else np.full(count, -np.inf)
        best = _Best(c.ids, logits, limits, np.full(count, self.vocab - k))
        if self._changed is not None:
            best = self._merged(best, self._changed)
        masked = [row for row, s in enumerate(self._sequences) if s.allowed is not None]
        return self._masked(best, np.array(masked)) if masked else best

    def _masked(self, best: _Best, rows: Ints) -> _Best:
        """Without the tokens that these rows may not have. Where no more are allowed than there are places,
        the order is complete: all that is looked at is those."""
        masks = np.stack([self._sequences[row].allowed for row in rows.tolist()]).view(np.uint32)
        ids, logits = best.ids[rows], best.logits[rows]
        allowed = masks[np.arange(len(rows))[:, None], ids >> 5] >> (ids & 31).astype(np.uint32) & 1
        logits = np.where(allowed, logits, -np.inf)
        order = np.argsort(-logits, axis=1, kind="stable")
        ids, logits = np.take_along_axis(ids, order, axis=1), np.take_along_axis(logits, order, axis=1)
        counts = np.bitwise_count(masks).sum(axis=1).astype(np.int64)
        others = counts - (logits > -np.inf).sum(axis=1)
        for i in np.flatnonzero((others > 0) & (counts <= ids.shape[1])).tolist():
            few = np.flatnonzero(np.unpackbits(masks[i].view(np.uint8), count=self.vocab, bitorder="little"))
            values = self._at(int(rows[i]), few)
            first = np.argsort(-values, kind="stable")
            ids[i], logits[i], others[i] = 0, -np.inf, 0
            ids[i, : few.size], logits[i, : few.size] = few[first], values[first]
        made = _Best(best.ids.copy(), best.logits.copy(), best.limits.copy(), best.others.copy())
        made.ids[rows], made.logits[rows], made.others[rows] = ids, logits, others
        made.limits[rows[others <= 0]] = -np.inf
        return made

    def _at(self, row: int, ids: Ints) -> Doubles:
        """A row's logits of some tokens, which are in ascending order."""
        values: Doubles = self._candidates.full()[row, ids].astype(np.float64)
        if self._changed is not None:
            mine = self._changed.rows == row
            places = np.searchsorted(ids, self._changed.ids[mine])
            hit = (places < ids.size) & (ids[np.minimum(places, ids.size - 1)] == self._changed.ids[mine])
            values[places[hit]] = self._changed.values[mine][hit]
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
        made = _Best(np.zeros(shape, np.int64), np.full(shape, -np.inf), best.limits, self.vocab - sizes)
        made.ids[rows, column] = ids
        made.logits[rows, column] = logits
        return made
