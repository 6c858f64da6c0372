"""The same simulated engine without a pipeline: what its steps cost in the process of the caller."""

import asyncio
import os
import threading

from bench.cpu import cpu_ns
from millrace import models, settings
from millrace.messages import Sampling
from services.engine.actor import simulated
from services.engine.loop import StepLoop
from services.engine.scheduler import Output, Scheduler
from services.engine.sequence import Sequence


async def step_cpu_ns(batch: int, seconds: float, step_ms: float) -> float:
    """Processor time of one step with so many rows."""
    given = settings.Engine(slots=batch, sim_step_ms=step_ms, sim_row_ms=0.0, sim_token_ms=0.0, sim_eos=0.0)
    model = simulated(models.find("sim"), given)
    errors: list[BaseException] = []
    full = threading.Event()

    def deliver(outputs: list[Output]) -> None:
        if len(outputs) == batch:
            full.set()

    loop = StepLoop(Scheduler(batch, given.chunk), model, deliver, errors.append)
    for n in range(batch):
        loop.add(Sequence(f"r{n}", 1, [5], Sampling(n), 1 << 30, epoch=1))
    loop.start()
    await asyncio.to_thread(full.wait, 10)
    steps, spent = loop.steps, cpu_ns(os.getpid())
    await asyncio.sleep(seconds)
    steps, spent = loop.steps - steps, cpu_ns(os.getpid()) - spent
    loop.stop()
    if errors:
        raise errors[0]
    return spent / steps
