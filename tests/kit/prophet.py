"""A drafter that knows what the simulated model says next, and lies now and then."""

from services.engine.choice.sample import Candidates, choose
from services.engine.loop import StepLoop
from services.engine.model.sim import SimModel
from services.engine.steps.scheduler import Chunk, Output, Step
from services.engine.steps.sequence import Sequence


class Prophet:
    def __init__(self, model: SimModel):
        """`model` is one of its own, like the engine's, with one slot."""
        self._model = model
        self.right = self.wrong = 0

    def guess(self, sequence: Sequence, most: int) -> list[int]:
        if len(sequence.tokens) % 3 == 2:
            return []
        of = sequence
        twin = Sequence(of.request, of.prompt_len, list(of.tokens), of.sampling, of.max_tokens, of.min_tokens)
        twin.stop_ids, twin.epoch, twin.slot = of.stop_ids, 1, 0
        guesses: list[int] = []
        for _ in range(min(most, 1 + len(of.tokens) % 4)):
            step = Step([], Chunk(twin, twin.computed, len(twin.tokens) - twin.computed))
            guesses += choose(self._model.run(step), [twin])
            twin.computed = len(twin.tokens)
            twin.append(guesses[-1])
        if len(of.tokens) % 5 == 0:
            guesses[-1] ^= 1
        return guesses

    def judged(self, sequence: Sequence, guessed: int, right: int) -> None:
        self.right += right
        self.wrong += guessed - right


class CredulousLoop(StepLoop):
    """Takes guesses for what would have been chosen."""

    def _decided(self, step: Step, candidates: Candidates) -> list[Output]:
        outputs = super()._decided(Step(step.rows, step.chunk), candidates)
        if step.chunk and step.guesses and not outputs[-1].finish and outputs[-1].token != step.guesses[-1]:
            outputs.append(self._scheduler.go_on(step.chunk.sequence, step.guesses[-1], None))
        return outputs
