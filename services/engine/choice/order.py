"""One row's order, best first and equals by id, worked out only where somebody looks.

Sorting a large vocabulary takes longer than a step. Here the tokens are thrown into buckets by their
logits, the buckets' weights are summed, and only the bucket that is looked into is put in order.
"""

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

BUCKETS, REACH = 1024, 40.0
"""Over so many logits below the best, at temperature 1. What lies lower weighs e-18 of it: one bucket."""


class Order:
    def __init__(self, logits: Doubles, temperature: float, min_p: float):
        # In place, as far as it goes: new memory for a whole row takes longer than what is done with it.
        below = logits.max() - logits
        below /= temperature
        self._logits = logits
        self._weights = np.negative(below)
        np.exp(self._weights, out=self._weights)
        if min_p:
            self._weights[self._weights < min_p] = 0.0
        below *= BUCKETS / REACH
        self._bucket = np.minimum(below, BUCKETS - 1, out=below).astype(np.int64)
        self._mass = np.cumsum(np.bincount(self._bucket, self._weights, BUCKETS))

    @property
    def total(self) -> float:
        """What all tokens weigh."""
        return float(self._mass[-1])

    def first(self, count: int) -> float:
        """What so many of the best weigh together."""
        if count >= len(self._logits):
            return self.total
        counts = np.cumsum(np.bincount(self._bucket, minlength=BUCKETS))
        bucket = int(np.searchsorted(counts, count))
        before = int(counts[bucket - 1]) if bucket else 0
        _, cumulated = self._inside(bucket)
        return float(cumulated[count - before - 1])

    def at(self, mass: float) -> tuple[int, float]:
        """The first token that, with all before it, weighs more than this; and how much that is."""
        ends = int(np.searchsorted(self._mass, self._mass[-1]))  # nothing behind it weighs anything
        bucket = min(int(np.searchsorted(self._mass, mass, side="right")), ends)
        ids, cumulated = self._inside(bucket)
        place = min(int(np.searchsorted(cumulated, mass, side="right")), len(ids) - 1)
        return int(ids[place]), float(cumulated[place])

    def _inside(self, bucket: int) -> tuple[npt.NDArray[np.int64], Doubles]:
        ids = np.flatnonzero(self._bucket == bucket)
        ids = ids[np.argsort(-self._logits[ids], kind="stable")]
        before = self._mass[bucket - 1] if bucket else 0.0
        return ids, before + np.cumsum(self._weights[ids])
