"""A running service's state directory: somebody may remove it, and the service goes on and makes it again."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from millrace.up import control
from millrace.up.place import CannotStart, reclaim

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
        missed = 0 if control.there(folder) else missed + 1
        if missed < GONE:
            continue
        missed = 0
        try:
            reclaim(folder, lock)
            restore()
            await listen()
        except (CannotStart, OSError) as error:
            if not told:
                why = f"and cannot be made again ({error})"
                say(f"{folder} was removed, {why}: ps, scale and restart do not find this service")
            told = True
        else:
            told = False
            say(f"{folder} was removed, and is made again; who runs writes no log there until a restart")
