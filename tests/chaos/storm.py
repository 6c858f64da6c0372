"""One death after another, of whoever comes to hand."""

import asyncio
import contextlib
import os
import signal

from tests.chaos.trial import Scene

BLOWS = 8
EVERY_S = (0.05, 0.6)


async def storm(scene: Scene) -> None:
    """Kills and short pauses, some of them of a process that has only just begun."""
    paused: list[asyncio.Task[None]] = []
    for _ in range(BLOWS):
        rows = [row for row in await scene.service.ps() if row.role != "gateway" and row.pid]
        row = scene.chance.choice(rows)
        with contextlib.suppress(ProcessLookupError):
            if scene.chance.random() < 0.7:
                os.kill(row.pid, signal.SIGKILL)
            else:
                paused.append(asyncio.create_task(scene.pause(row.pid, scene.chance.uniform(0.1, 1.5))))
        await asyncio.sleep(scene.chance.uniform(*EVERY_S))
    for task in paused:
        with contextlib.suppress(ProcessLookupError):  # it was killed while it slept
            await task
