"""A disk without room below nats-server: new requests are refused, running streams go on."""

import asyncio
import contextlib
from pathlib import Path

from tests.chaos.trial import Outcome, Scene, disturbed
from tests.kit.client import ask

REFUSED_S = 8.0
"""A gateway asks again for six seconds before it gives a request back."""


async def full_disk(scene: Scene) -> Outcome:
    filler = scene.service.folder / "nats" / "jetstream" / "filler"
    wishes = await scene.site.wishes()
    refusals: list[str] = []
    outcome = Outcome()

    async def inflict(scene: Scene) -> None:
        _fill(filler)
        # What room there is in blocks already taken may hold another job or two.
        for number in range(12):
            wish = scene.chance.choice(wishes)
            answer = await ask(scene.service.url, wish.body)
            if answer.status == 200:
                outcome.judge(f"request {number + 1} on the full disk", wish, answer)
                continue
            took = asyncio.get_running_loop().time() - answer.asked_at
            refusals.append(f"{answer.status} in {took:.1f} s")
            if answer.status != 503 or "retry-after" not in answer.headers or took > REFUSED_S:
                outcome.failures.append(f"refused with {refusals[-1]}, {answer.headers}")
            if len(refusals) == 2:
                break
        filler.unlink()

    outcome.add(await disturbed(scene, inflict, late=False))
    if not refusals:
        outcome.failures.append("nothing was refused on a full disk")
    outcome.notes.append("refused: " + ", ".join(refusals))
    await scene.service.answers()  # `millrace up` starts the server again once there is room
    outcome.judge("after there was room again", wishes[0], await ask(scene.service.url, wishes[0].body))
    return outcome


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
