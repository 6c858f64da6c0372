"""The same engine without a pipeline: how a token comes to whoever waits for it in the same process."""

import asyncio
import time
from dataclasses import dataclass

from millrace import models, settings
from millrace.messages import Sampling
from services.engine import opening
from services.engine.loop import StepLoop
from services.engine.steps.scheduler import Output, Scheduler
from services.engine.steps.sequence import Sequence

WARM = 0.2
"""Of the time: passed before it counts."""


@dataclass(frozen=True)
class Inside:
    """What counted of a run."""

    tokens_s: float
    delays: list[float]  # seconds from the end of a step to whoever waited, of each token
    step_us: float  # processor time for each step, but for what its thread took


async def measure(batch: int, step_ms: float, seconds: float) -> Inside:
    """A task for each stream waits for its tokens; the thread of steps hands them to the event loop."""
    given = settings.Engine(slots=batch, sim_step_ms=step_ms, sim_row_ms=0, sim_eos=0)
    model = opening.simulated(models.find("sim"), given)
    here = asyncio.get_running_loop()
    waiting: dict[str, asyncio.Queue[tuple[int, Output]]] = {f"{n}": asyncio.Queue() for n in range(batch)}
    steps: list[tuple[int, int]] = []  # when each was done, and what its thread took for it
    heard: list[tuple[int, int]] = []  # when each token was made, and how long after it was there
    own = 0

    def hand_over(at: int, outputs: list[Output]) -> None:
        for output in outputs:
            waiting[output.request].put_nowait((at, output))

    def deliver(outputs: list[Output]) -> None:
        nonlocal own
        at = time.monotonic_ns()
        steps.append((at, time.thread_time_ns() - own))
        here.call_soon_threadsafe(hand_over, at, outputs)
        own = time.thread_time_ns()

    async def hear(queue: asyncio.Queue[tuple[int, Output]]) -> None:
        while True:
            at, _ = await queue.get()
            heard.append((at, time.monotonic_ns() - at))

    def fail(error: BaseException) -> None:
        here.call_soon_threadsafe(failed.set_exception, error)

    failed: asyncio.Future[None] = here.create_future()
    listeners = [asyncio.create_task(hear(queue)) for queue in waiting.values()]
    loop = StepLoop(Scheduler(batch, given.chunk), model, deliver, fail)
    for name in waiting:
        most = int(2 * seconds * 1e3 / step_ms)
        loop.add(Sequence(name, 2, [1, 2], Sampling(int(name), 1.0), most, epoch=1))
        loop.grant(name, 1, [])
    loop.start()
    try:
        await asyncio.wait({failed}, timeout=seconds * WARM)
        began, before = time.monotonic_ns(), time.process_time_ns()
        await asyncio.wait({failed}, timeout=seconds * (1 - WARM))
        ended, after = time.monotonic_ns(), time.process_time_ns()
    finally:
        loop.stop()
        for listener in listeners:
            listener.cancel()
    if failed.done():
        failed.result()
    delays = [late / 1e9 for at, late in heard if began <= at < ended]
    takes = [took for at, took in steps if began <= at < ended]
    spent = (after - before - sum(takes)) / 1e3 / len(takes)
    return Inside(len(delays) / (ended - began) * 1e9, delays, spent)
