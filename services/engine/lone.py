"""One row's token by plain arithmetic, for steps with few rows: between two of a model's runs the
processor's caches hold its weights, and each NumPy call costs several microseconds.

The rule is sample.py's. All sums and weights here are right to within SLACK, so a token is told only where
everything within SLACK chooses the same; then the exact sums choose it, too.
"""

import math
from bisect import bisect_left, bisect_right
from itertools import accumulate

from millrace.messages import Sampling

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
    if not -math.inf < logits[-1] <= logits[0] < math.inf or sampling.min_p:
        return -1
    weights = [math.exp((logit - logits[0]) / sampling.temperature) for logit in logits]
    edge = weights[-1]
    if not others or 0 < sampling.top_k <= len(weights):
        edge, others = 0.0, 0
    sums = list(accumulate(weights[: sampling.top_k or None]))
    number = random(sampling.seed, position)
    places = []
    # If all others weigh nothing, and if they weigh as much as they can.
    for sign, rest, beyond in ((-1, 0.0, 0.0), (1, others * edge, edge)):
        enough = sampling.top_p * (sums[-1] + rest) * (1 + sign * SLACK)
        last = bisect_left(sums, enough)
        kept = sums[last] if last < len(sums) else enough + beyond
        places.append(min(bisect_right(sums, number * kept * (1 + sign * SLACK)), last))
    return places[0] if places[0] == places[1] < len(sums) else -1
