"""The step loop: one thread that does nothing but steps, beside the event loop that does the messages."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from services.engine.sample import Candidates, Sampler, choose
from services.engine.scheduler import Output, Scheduler, Step
from services.engine.sequence import Sequence


class Model(Protocol):
    places: int  # for blocks of prefixes; none, where keys and values cannot be shared

    def run(self, step: Step) -> Candidates:
        """Compute the step; the candidates of `step.samples`, row for row."""
        ...


class StepLoop:
    def __init__(
        self,
        scheduler: Scheduler,
        model: Model,
        deliver: Callable[[list[Output]], object],
        failed: Callable[[BaseException], object],
        sampler: Sampler = choose,
    ):
        """`deliver` and `failed` are called in the loop's thread."""
        self.steps = 0
        self._scheduler = scheduler
        self._model = model
        self._deliver = deliver
        self._failed = failed
        self._sampler = sampler
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)

    # -- from the event loop; each takes effect between two steps

    def add(self, sequence: Sequence) -> None:
        self._post(self._scheduler.add, sequence)

    def grant(self, request: str, epoch: int, committed: list[int]) -> None:
        self._post(self._scheduler.grant, request, epoch, committed)

    def drop(self, request: str) -> None:
        self._post(self._scheduler.drop, request)

    def _post(self, method: Callable[..., None], *args: Any) -> None:
        self._posted.append((method, args))
        self._wake.set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=5)

    # -- in the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wake.clear()
                while self._posted:
                    method, args = self._posted.popleft()
                    method(*args)
                if not self.step():
                    self._wake.wait()
        except BaseException as error:
            self._failed(error)

    def step(self) -> bool:
        """One step; False if there is nothing to do."""
        step = self._scheduler.schedule()
        if step is None:
            return False
        candidates = self._model.run(step)
        samples = step.samples
        tokens = self._sampler(candidates, samples) if samples else []
        outputs = self._scheduler.postprocess(step, tokens)
        self.steps += 1
        if outputs:
            self._deliver(outputs)
        return True
