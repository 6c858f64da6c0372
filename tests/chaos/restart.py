"""Every process replaced, one after another, while requests keep coming."""

import asyncio
import time

from tests.chaos.trial import Outcome, Scene, ended
from tests.kit.client import Answer, ask

EVERY_S = 0.25
AT_ONCE = 8
"""Beyond what a machine can answer requests only pile up, and what then takes too long says nothing."""


async def rolling(scene: Scene) -> Outcome:
    outcome = Outcome(trials=1)
    wishes = await scene.site.wishes()
    asked: list[tuple[asyncio.Task[Answer], int, Answer]] = []
    before = {row.pid for row in await scene.service.ps()}
    restarting = asyncio.create_task(scene.service.restart())
    began = time.monotonic()
    while not restarting.done() and time.monotonic() - began < 180.0:
        if sum(not task.done() for task, _, _ in asked) < AT_ONCE:
            which = len(asked) % len(wishes)
            answer = Answer(0.0)
            task = asyncio.create_task(ask(scene.service.url, wishes[which].body, answer=answer))
            asked.append((task, which, answer))
        await asyncio.sleep(EVERY_S)
    took = time.monotonic() - began
    if restarting.done():
        restarting.result()
    else:
        restarting.cancel()
        outcome.hangs.append(f"the restart is not done after {took:.0f} s")
    await ended([task for task, _, _ in asked], [answer for _, _, answer in asked])
    for number, (task, which, answer) in enumerate(asked):
        name = f"request {number + 1}"
        if not task.done():
            task.cancel()
            outcome.hang(name, answer)
            continue
        outcome.judge(name, wishes[which], answer)
        if answer.gaps:
            outcome.stalls.append(max(0.0, max(answer.gaps) - wishes[which].usual_gap))
            outcome.excused.append(0.0)
            outcome.late.append(answer.first_s)
    kept = before & {row.pid for row in await scene.service.ps()}
    if kept:
        outcome.failures.append(f"not replaced: pids {sorted(kept)}")
    outcome.notes.append(f"all replaced in {took:.1f} s under {len(asked)} requests")
    return outcome
