"""How often something is looked at: every few moments with work in hand, seldom without."""

import asyncio


class Pace:
    """What comes after a time without work is looked at at once: nobody waits for the slow pace."""

    def __init__(self, busy_s: float, idle_s: float):
        self._busy_s = busy_s
        self._idle_s = idle_s
        self._idle: asyncio.Event | None = None

    async def pause(self, *, busy: bool) -> None:
        if busy:
            await asyncio.sleep(self._busy_s)
            return
        self._idle = asyncio.Event()
        late = asyncio.get_running_loop().call_later(self._idle_s, self._idle.set)
        try:
            await self._idle.wait()
        finally:
            late.cancel()
            self._idle = None

    def hurry(self) -> None:
        """Work has come."""
        if self._idle:
            self._idle.set()
