"""A running service's state directory: somebody may remove it, or its lock, and it is made again."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from millrace.up import control
from millrace.up.place import CannotStart, held, reclaim

LOOK_S = 0.25
GONE = 4
"""Looks in a row that find nothing: whoever removes it has come to an end by then."""


async def keep(
    folder: Path,
    lock: int,
    restore: Callable[[], None],
    listen: Callable[[], Awaitable[None]],
    say: Callable[[str], None],
) -> None:
    """As long as this runs, `ps`, `scale` and `restart` find the service again. `restore` writes what its
    processes need there, `listen` makes the socket for orders."""
    missed, told = 0, False
    while True:
        await asyncio.sleep(LOOK_S)
        missed = 0 if control.there(folder) and held(folder, lock) else missed + 1
        if missed < GONE:
            continue
        missed = 0
        try:
            reclaim(folder, lock)
            restore()
            await listen()
        except (CannotStart, OSError) as error:
            if not told:
                why = f"and cannot be made again ({error}): ps, scale and restart do not find this service"
                say(f"{folder} or its lock was removed, {why}")
            told = True
        else:
            told = False
            logs = "who runs writes no log that was there until a restart"
            say(f"{folder} or its lock was removed, and is made again; {logs}")
