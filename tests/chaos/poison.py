"""A job that kills every engine it meets: it is given up, and those beside it come to no harm."""

import asyncio

from tests.chaos.trial import Outcome, Scene, disturbed
from tests.kit.client import ask

SEED = 666
"""As the service is told in `tests/chaos/faults.py`; nobody else asks with it."""


async def among_innocents(scene: Scene) -> Outcome:
    body = {"model": "sim", "messages": [{"role": "user", "content": "drink me"}], "seed": SEED}
    body |= {"max_tokens": 50, "stream": True}
    said: list[str] = []

    async def inflict(scene: Scene) -> None:
        answer = await ask(scene.service.url, body)
        said.append(f"{answer.status} {answer.error.get('code')}")

    outcome = await disturbed(scene, inflict)
    outcome.streams += 1
    if said not in (["500 job_crashed"], ["200 job_crashed"]):
        outcome.failures.append(f"the poison job got {said}")
    await asyncio.sleep(0.5)
    return outcome
