"""How likely the model found a prompt."""

from millrace.messages import Odds, Sampling
from services.engine.choice.odds import of_prompt
from services.engine.guesses.lookup import Lookup
from services.engine.loop import StepLoop
from services.engine.model.sim import Costs, SimModel, Vocabulary
from services.engine.steps.prefix import Prefixes
from services.engine.steps.scheduler import Chunk, Scheduler, Step
from services.engine.steps.sequence import Sequence

WORDS = [8 + n * 7 % 200 for n in range(90)]


def model(slots: int, places: int = 0) -> SimModel:
    return SimModel(slots, Vocabulary(words=list(range(8, 250)), eos=2), costs=Costs(0, 0, 0), places=places)


def asking(name: str, tokens: list[int], *, echo: bool) -> Sequence:
    return Sequence(name, len(tokens), list(tokens), Sampling(5), 9, epoch=1, slot=0, logprobs=2, echo=echo)


def test_a_prompts_odds_are_those_of_each_token() -> None:
    """In chunks, beside others, and though all of it was computed before, they are what the model says when
    it is given the prompt token by token."""
    alone, expected = model(1), list[Odds]()
    for at in range(89):
        after = alone.run(Step([], Chunk(asking("r", WORDS[: at + 1], echo=False), at, 1)))
        expected += of_prompt(after, 0, [WORDS[at + 1]], 2)
    scheduler = Scheduler(3, 16, Prefixes(40), Lookup)
    loop = StepLoop(scheduler, model(3, 40), lambda _: None, lambda _: None)
    sequences = [asking(name, WORDS, echo=name == "b") for name in "abc"]
    for sequence in sequences:
        scheduler.add(sequence)
        for _ in range(9):
            loop.step()
    while loop.step():
        pass

    assert [expected, 0] == [sequences[1].read, sequences[1].cached]
    assert 0 < sequences[2].cached and [] == sequences[2].read
