"""Moments told by the wall clock keep their order, and follow it when it is set."""

from collections.abc import Iterator
from itertools import cycle

from hypothesis import given
from hypothesis import strategies as st

from millrace.wall import SLACK_S, Wall


class Clocks:
    """One time that both read, and that goes on between any two readings."""

    def __init__(self, stalls: Iterator[float]) -> None:
        self.now, self.set_to, self._stalls = 100.0, 1_790_000_000.0, stalls

    def monotonic(self) -> float:
        self.now += next(self._stalls)
        return self.now

    def unix(self) -> float:
        return self.set_to + self.monotonic()


def test_a_moment_is_told_the_same_each_time_though_the_process_stalls() -> None:
    clocks = Clocks(cycle([0.7, 1e-6, 3e-6, 1e-6, 2e-6, 1e-6, 5e-6]))
    wall = Wall(clocks.monotonic, clocks.unix)

    assert 1 == len({wall(5.0) for _ in range(20)})


def test_it_is_the_quickest_reading_that_counts() -> None:
    clocks = Clocks(cycle([0.5] * 6 + [1e-6] * 3))
    wall = Wall(clocks.monotonic, clocks.unix)

    assert abs(wall(5.0) - clocks.set_to - 5.0) < 1e-5


@given(st.floats(-1e6, 1e6).filter(lambda by: abs(by) > 3 * SLACK_S))
def test_a_clock_that_is_set_is_followed(by: float) -> None:
    clocks = Clocks(cycle([1e-6]))
    wall = Wall(clocks.monotonic, clocks.unix)
    clocks.set_to += by

    assert abs(wall(5.0) - clocks.set_to - 5.0) < 1e-5
