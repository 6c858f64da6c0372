"""The engine without a pipeline, on the same prompts: the difference is what the other processes cost."""

import itertools
import statistics
import threading
import time
from pathlib import Path

from millrace import models, settings
from millrace.messages import Sampling
from services.engine.loop import StepLoop
from services.engine.model import prepare
from services.engine.model.session import OrtModel
from services.engine.steps.scheduler import Output, Scheduler
from services.engine.steps.sequence import Sequence

WAIT_S = 600.0


class Alone:
    def __init__(self, folder: Path, cache: Path, slots: int, max_len: int):
        given = settings.Engine()
        ready = prepare.converted(models.find(str(folder)), cache)
        self._slots, self._chunk = slots, given.chunk
        self._model = OrtModel(
            ready,
            slots,
            given.chunk,
            max_len=max_len,
            graphs=prepare.prepared(ready, cache),
            spin_us=given.spin_us,
        )

    def heard(self, prompts: list[list[int]], tokens: int, seed: int) -> tuple[float, float]:
        """Seconds until all are answered, and the median between two tokens of one answer."""
        at: dict[str, list[float]] = {f"{i}": [] for i in range(len(prompts))}
        failed: list[BaseException] = []
        over = threading.Event()
        left = len(prompts)

        def deliver(outputs: list[Output]) -> None:
            nonlocal left
            now = time.perf_counter()
            for out in outputs:
                at[out.request].append(now)
                left -= bool(out.finish)
            if not left:
                over.set()

        def fail(error: BaseException) -> None:
            failed.append(error)
            over.set()

        loop = StepLoop(Scheduler(self._slots, self._chunk), self._model, deliver, fail)
        for i, prompt in enumerate(prompts):
            loop.add(Sequence(f"{i}", len(prompt), list(prompt), Sampling(seed + i, 1.0), tokens, epoch=1))
        began = time.perf_counter()
        loop.start()
        over.wait(WAIT_S)
        took = time.perf_counter() - began
        loop.stop()
        if failed or left:
            raise RuntimeError(f"the engine alone did not answer: {failed}")
        return took, statistics.median(b - a for one in at.values() for a, b in itertools.pairwise(one))
