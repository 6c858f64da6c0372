"""What a world's engines say, and how it is spelled: models without weights, a decoder that holds back."""

from services.engine.choice.pool import Vectors
from services.engine.choice.sample import Candidates
from services.engine.model.sim import MASK, Costs, SimModel, Vocabulary
from services.engine.steps.scheduler import Step

VOCABULARY = Vocabulary(words=list(range(8, 250)), eos=2)
POISON = 666
"""The seed of what crashes its engine."""


class Crash(Exception):
    """An engine dies of a request, which it names."""


class Model(SimModel):
    """Engines of another kind go another way at every token: what one says, another would not have said."""

    def __init__(self, kind: int, slots: int = 1, places: int = 0):
        costs = Costs(0, 0, 0)
        super().__init__(slots, VOCABULARY, costs=costs, eos_chance=0.004, kind=kind, places=places)
        self._way = (kind * 0x9E3779B97F4A7C15) & MASK

    def _candidates(self, states: list[int]) -> Candidates:
        return super()._candidates([state ^ self._way for state in states])


class PoisonedModel(Model):
    def run(self, step: Step) -> Candidates:
        for sequence in step.sequences:
            if sequence.sampling.seed == POISON:
                raise Crash(sequence.request)
        return super().run(step)


class VectorModel(PoisonedModel):
    """In place of its candidates it tells what they would be made of."""

    def _candidates(self, states: list[int]) -> Vectors:
        return Vectors.of([(state ^ self._way).to_bytes(8, "little") for state in states])


def spelling(token: int) -> bytes:
    return f"{token}.".encode()


class Speller:
    """A decoder whose every third token completes the two before it."""

    def __init__(self) -> None:
        self._held = ""

    def spell(self, token_id: int) -> bytes:
        return spelling(token_id)

    def step(self, token_id: int) -> str:
        self._held += f"{token_id}."
        return self.finish() if token_id % 3 == 0 else ""

    def finish(self) -> str:
        text, self._held = self._held, ""
        return text
