"""Clients that hang up: what they held is free for the next at once."""

import asyncio
import time

from tests.chaos.load import LATE
from tests.chaos.site import Shape
from tests.chaos.trial import HANG_S, Outcome, Scene, disturbed
from tests.kit.client import Answer, ask

SHAPE = Shape(engines=1, env=(("MILLRACE_SLOTS", "1"),))
ROUNDS = 6
LONG_PROMPT = "grain " * 1500  # its prefill takes half a second


async def one_slot(scene: Scene) -> Outcome:
    """With one slot, the next request's first token tells when the slot of a cancelled one was free.

    The stall is the time from the hang-up to that first token, which takes a step of its own.
    """
    outcome = Outcome(trials=1)
    wish = (await scene.site.wishes())[-len(LATE)]
    for round in range(ROUNDS):
        prefilling = round % 2 == 1
        body = {**wish.body, "max_tokens": 2000, "ignore_eos": True}
        if prefilling:
            body["messages"] = [{"role": "user", "content": LONG_PROMPT}]
        started = asyncio.Event()
        held = asyncio.create_task(ask(scene.service.url, body, news=started.set))
        if prefilling:
            await asyncio.sleep(scene.chance.uniform(0.1, 0.3))
        else:
            await asyncio.wait_for(started.wait(), HANG_S)
        answer = Answer(0.0)
        waiting = asyncio.create_task(ask(scene.service.url, wish.body, answer=answer))
        await asyncio.sleep(scene.chance.uniform(0.1, 0.2))
        early = bool(answer.events)  # then the slot was not taken, and this round says nothing
        held.cancel()
        left = time.monotonic()
        await asyncio.wait([waiting], timeout=HANG_S)
        name = f"round {round + 1}"
        if not waiting.done():
            waiting.cancel()
            outcome.hang(name, answer)
            continue
        outcome.judge(name, wish, answer)
        if early or not answer.times:
            outcome.failures.append(f"{name}: the slot was not held")
        else:
            outcome.stalls.append(answer.times[0] - left)
            outcome.excused.append(0.0)
    return outcome


async def half(scene: Scene) -> Outcome:
    """As many clients again hang up at some moment; the others do not notice."""
    leavers: list[asyncio.Task[Answer]] = []

    async def come_and_go(scene: Scene) -> None:
        for wish in (await scene.site.wishes())[: -len(LATE)]:
            leavers.append(asyncio.create_task(ask(scene.service.url, wish.body)))
        for task in leavers:
            await asyncio.sleep(scene.chance.uniform(0.0, 0.1))
            task.cancel()

    return await disturbed(scene, come_and_go)
