"""More requests than the queue takes: each is either answered in full or refused at once."""

import asyncio

from tests.chaos.site import Shape
from tests.chaos.trial import Outcome, Scene, ended
from tests.kit.client import Answer, ask

REQUESTS = 40
SHAPE = Shape(env=(("MILLRACE_QUEUE", "12"), ("MILLRACE_SLOTS", "4")))


async def full(scene: Scene) -> Outcome:
    outcome = Outcome(trials=1)
    known = await scene.site.wishes()
    wishes = [scene.chance.choice(known) for _ in range(REQUESTS)]
    answers = [Answer(0.0) for _ in wishes]

    async def client(index: int) -> None:
        await asyncio.sleep(scene.chance.uniform(0, 0.5))
        await ask(scene.service.url, wishes[index].body, answer=answers[index])

    tasks = [asyncio.create_task(client(i)) for i in range(REQUESTS)]
    await ended(tasks, answers)
    refused = 0
    for index, (task, wish, answer) in enumerate(zip(tasks, wishes, answers, strict=True)):
        name = f"request {index + 1}"
        if not task.done():
            task.cancel()
            outcome.hang(name, answer)
        elif answer.status == 429:
            outcome.streams += 1
            refused += 1
            if not answer.headers.get("retry-after", "").isdigit():
                outcome.failures.append(f"{name}: 429 without Retry-After")
        else:
            outcome.judge(name, wish, answer)
    if not refused:
        outcome.failures.append("nothing was refused")
    outcome.notes.append(f"{refused} of {REQUESTS} refused with 429")
    return outcome
