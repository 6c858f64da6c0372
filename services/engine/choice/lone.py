"""One row's token by plain arithmetic, for steps with few rows: between two of a model's runs the
processor's caches hold its weights, and each NumPy call costs several microseconds.

The rule is sample.py's. All sums and weights here are right to within SLACK, so a token is told only where
everything within SLACK chooses the same; then the exact sums choose it, too.
"""

import math
from bisect import bisect_left, bisect_right
from itertools import accumulate

from millrace.messages import Sampling

GREEDY = 1e-5
"""A temperature below this is zero, as in vLLM: nothing but the best token has any weight then."""

SLACK = 1e-9
"""Far more than the rounding of a sum of a row's candidates in double precision."""

_ALL = (1 << 64) - 1


def _mixed(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _ALL
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _ALL
    return x ^ x >> 31


def random(seed: int, position: int) -> float:
    """The number of sample.py's `uniform`."""
    golden = 0x9E3779B97F4A7C15
    return (_mixed(_mixed(seed + golden & _ALL) + (position + 1) * golden & _ALL) >> 11) * 2.0**-53


def place(logits: list[float], others: int, sampling: Sampling, position: int) -> int:
    """Where among these, best first, the token is; -1 if they do not tell. `others`: how many tokens there
    are behind them, none of them better than the last."""
    if sampling.temperature < GREEDY:
        return 0 if logits and logits[0] > -math.inf else -1
    if not logits or sampling.min_p or not -math.inf < logits[-1] <= logits[0] < math.inf:
        return -1
    weights = [math.exp((logit - logits[0]) / sampling.temperature) for logit in logits]
    edge = weights[-1]
    if not others or 0 < sampling.top_k <= len(weights):
        edge, others = 0.0, 0
    sums = list(accumulate(weights[: sampling.top_k or None]))
    number = random(sampling.seed, position)
    return within(sums, ((0.0, 0.0), (others * edge, edge)), sampling.top_p, number)


def within(
    sums: list[float], bounds: tuple[tuple[float, float], tuple[float, float]], top_p: float, number: float
) -> int:
    """The place of the token among these cumulated weights, if both bounds choose the same; else -1. A bound:
    what all others weigh, and one of them."""
    places = []
    for sign, (rest, beyond) in zip((-1, 1), bounds, strict=True):
        enough = top_p * (sums[-1] + rest) * (1 + sign * SLACK)
        last = bisect_left(sums, enough)
        kept = sums[last] if last < len(sums) else enough + beyond
        places.append(min(bisect_right(sums, number * kept * (1 + sign * SLACK)), last))
    return places[0] if places[0] == places[1] < len(sums) else -1
