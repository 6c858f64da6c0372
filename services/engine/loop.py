"""The step loop: one thread that does nothing but steps, beside the event loop that does the messages."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from millrace.messages import Odds
from services.engine.ahead import Ahead
from services.engine.choice.odds import odds, of_prompt
from services.engine.choice.pool import Vectors
from services.engine.choice.sample import Candidates, Sampler, choose
from services.engine.steps.guide import Guides
from services.engine.steps.prefix import Keeper
from services.engine.steps.scheduler import Copy, Output, Scheduler, Step
from services.engine.steps.sequence import Sequence

CHUNKS_TOLD = 64
"""A prompt of many thousand tokens has more chunks than anybody looks at."""


class Model(Protocol):
    exact: bool  # whether a token has the same logits decoded and prefilled
    kind: str  # models of one kind compute the same bits
    places: int  # for blocks of prefixes; none, where keys and values cannot be shared
    block: npt.NDArray[Any]  # one of them, as it is kept: its kind and shape
    shelf: Keeper | None

    def run(self, step: Step) -> Candidates:
        """Compute the step; the candidates of `step.samples`, row for row, or their `Vectors`."""
        ...

    def copy(self, copies: Iterable[Copy]) -> None:
        """What a step does first, without a step."""
        ...


@dataclass(frozen=True, slots=True)
class Noted:
    """One step, as a sample of what steps are like."""

    began: float
    ended: float
    requests: list[str]
    decoded: int  # tokens of answers
    prefilled: int  # tokens of prompts


class StepLoop:
    def __init__(
        self,
        scheduler: Scheduler,
        model: Model,
        deliver: Callable[[list[Output]], object],
        failed: Callable[[BaseException], object],
        sampler: Sampler = choose,
        *,
        noted: Callable[[Noted], object] | None = None,
        notes_per_s: float = 0.0,
        vocabulary: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`deliver`, `failed` and `noted` are called in the loop's thread. `vocabulary`: the folder of the
        model's tokens, for answers that have to keep to a grammar."""
        self.steps = 0
        self._stepping = False
        self._scheduler = scheduler
        self._model = model
        self._deliver = deliver
        self._failed = failed
        self._sampler = sampler
        self._noted = noted if notes_per_s > 0 else None
        self._note_every = 1.0 / notes_per_s if notes_per_s > 0 else 0.0
        self._note_at = 0.0
        self._clock = clock
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._wake = threading.Event()
        self._guides = Guides(vocabulary, self._wake.set) if vocabulary else None
        self._masks = Ahead()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)

    # -- from the event loop; each takes effect between two steps

    def prepare(self) -> None:
        """What no start has to wait for."""
        if self._guides is not None:
            self._guides.prepare()

    def add(self, sequence: Sequence) -> None:
        if sequence.grammar:
            assert self._guides is not None, "a grammar without a vocabulary"
            sequence.guide = self._guides.of(sequence.grammar)
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

    @property
    def under_way(self) -> int | None:
        """The number of the step that is."""
        return self.steps if self._stepping else None

    def stop(self) -> bool:
        """Whether it has."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=5)
        return not self._thread.is_alive()

    # -- in the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wake.clear()
                while self._posted:
                    method, args = self._posted.popleft()
                    method(*args)
                self._stepping = True
                more = self.step()
                self._stepping = False
                if not more:
                    self._wake.wait()
            self._model.copy(self._scheduler.put_away())
        except BaseException as error:
            self._failed(error)

    def step(self) -> bool:
        """One step; False if there is nothing to do."""
        began = self._clock()
        step = self._scheduler.schedule()  # where a draft may be asked, which computes
        if step is None:
            return False
        self._masks.begin(step.samples)
        candidates = self._model.run(step)
        self._masks.end()
        outputs = self._decided(step, candidates)
        self.steps += 1
        if step.chunk and not step.guesses and len(step.chunk.sequence.chunks) < CHUNKS_TOLD:
            step.chunk.sequence.chunks.append((self._clock(), step.chunk.count))
        if outputs:
            self._deliver(outputs)
        if self._noted and began >= self._note_at:
            self._note_at = began + self._note_every
            prefilled = step.chunk.count if step.chunk and not step.guesses else 0
            requests = [sequence.request for sequence in step.sequences]
            self._noted(Noted(began, self._clock(), requests, len(outputs), prefilled))
        return True

    def _decided(self, step: Step, candidates: Candidates) -> list[Output]:
        """The tokens of the step. A guess is no short cut: it counts if it is what was chosen in its place,
        and then its candidates are those that the next step would have had."""
        if isinstance(candidates, Vectors):
            return self._scheduler.embedded(step, candidates.rows)
        samples = step.samples
        if step.chunk and step.heard:
            sequence, behind = step.chunk.sequence, len(samples) + len(step.guesses)
            prompt = sequence.tokens[step.heard.start : step.heard.stop]
            sequence.read += of_prompt(candidates, behind, prompt, sequence.logprobs)
        outputs = self._scheduler.postprocess(step, *self._chosen(candidates.only(0, len(samples)), samples))
        if step.guesses:
            assert step.chunk
            sequence, right = step.chunk.sequence, 0
            for row, guess in enumerate(step.guesses, len(samples)):
                if outputs[-1].finish or outputs[-1].token != guess:
                    break
                right += 1
                sequence.look()
                (token,), told = self._chosen(candidates.only(row, row + 1), [sequence])
                outputs.append(self._scheduler.go_on(sequence, token, told[0] if told else None))
            self._scheduler.judged(sequence, len(step.guesses), right)
        return outputs

    def _chosen(self, candidates: Candidates, samples: list[Sequence]) -> tuple[list[int], list[Odds | None]]:
        tokens = self._sampler(candidates, samples) if samples else []
        return tokens, odds(candidates, samples, tokens)
