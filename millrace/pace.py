"""How often something is looked at, so that it wakes nobody who sleeps, if it can be helped.

A processor that slept finds its caches cold: to look around costs ten times as much then as it does right
after other work.
"""

import asyncio


def in_step(every_s: float, now: float) -> float:
    """Seconds until it is next done. By the machine's clock, so that all its processes do it together."""
    left = every_s - now % every_s
    return left if left > every_s / 10 else left + every_s


class Pace:
    """Every few moments with work in hand, seldom without. What comes after a time without work is looked at
    at once: nobody waits for the slow pace."""

    def __init__(self, busy_s: float, idle_s: float):
        self._busy_s = busy_s
        self._idle_s = idle_s
        self._over: asyncio.Event | None = None
        self._busy = False
        self._early = 0.0  # from then on a busy pause may end, if its process is awake

    async def pause(self, now: float, *, busy: bool) -> None:
        self._over, self._busy = asyncio.Event(), busy
        self._early = now + self._busy_s / 2
        pause_s = self._busy_s if busy else in_step(self._idle_s, now)
        late = asyncio.get_running_loop().call_later(pause_s, self._over.set)
        try:
            await self._over.wait()
        finally:
            late.cancel()
            self._over = None

    def awake(self, now: float) -> None:
        """Something else has just been done: better now than in a while."""
        if self._over and self._busy and now >= self._early:
            self._over.set()

    def hurry(self) -> None:
        """Work has come."""
        if self._over and not self._busy:
            self._over.set()
