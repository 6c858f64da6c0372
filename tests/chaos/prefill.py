"""What a successor has to compute before a stream can go on: no failover, however quick, spares that.

The engine computes one chunk a step and one sequence after the other, so the streams come back in turn,
each after the prompts and answers of those before it. The costs are the simulated model's.
"""

from collections.abc import Sequence

from millrace.settings import Engine
from tests.chaos.site import STEP_MS

_engine = Engine()


def again(lengths: Sequence[int]) -> list[float]:
    """Seconds until each of these is computed, in the order in which they came back."""
    done, seconds = [], 0.0
    for running, length in enumerate(lengths):
        for left in range(length, 0, -_engine.chunk):
            tokens = min(left, _engine.chunk)
            seconds += (STEP_MS + running * _engine.sim_row_ms + tokens * _engine.sim_token_ms) / 1e3
        done.append(seconds)
    return done
