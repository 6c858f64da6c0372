"""The wall clock's reading of a moment of the monotonic clock.

No two clocks can be read at once, so a reading of both is uncertain by as long as it took. Kept is the
distance between them: moments of one process are told in their order, whenever they are told.
"""

import time
from collections.abc import Callable

READINGS = 5  # of which the quickest counts
SLACK_S = 0.001  # both are slewed alike; further off than this and the wall clock was set


class Wall:
    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, unix: Callable[[], float] = time.time
    ) -> None:
        self._monotonic, self._unix = monotonic, unix
        self._apart = self._measured()

    def __call__(self, at: float) -> float:
        """That moment as unix seconds, by the wall clock as it is set now."""
        least, most = self._bounds()
        if not least - SLACK_S <= self._apart <= most + SLACK_S:
            self._apart = self._measured()
        return self._apart + at

    def _bounds(self) -> tuple[float, float]:
        before = self._monotonic()
        unix = self._unix()
        return unix - self._monotonic(), unix - before

    def _measured(self) -> float:
        least, most = min((self._bounds() for _ in range(READINGS)), key=lambda bounds: bounds[1] - bounds[0])
        return (least + most) / 2


wall = Wall()
