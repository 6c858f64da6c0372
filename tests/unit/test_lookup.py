"""Guesses: where they come from, when they stop, and that they never change an answer."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from millrace.grammar import Grammars
from millrace.messages import Form, Odds, Sampling, Voice
from services.engine.guesses.lookup import Lookup
from services.engine.loop import StepLoop
from services.engine.model.sim import Costs, SimModel, Vocabulary
from services.engine.steps.guide import Guide
from services.engine.steps.prefix import Prefixes
from services.engine.steps.scheduler import GUESSES, Drafter, Output, Scheduler
from services.engine.steps.sequence import Sequence
from services.tokenizer.constrain import grammar
from services.tokenizer.wish import Wish
from tests.kit.prophet import Prophet

DEMO = Path(__file__).parents[2] / "models" / "demo"
VOCABULARY = Vocabulary(words=list(range(8, 250)), eos=2)


def sequence(tokens: list[int], *, prompt: int = 0, max_tokens: int = 60, **more: Any) -> Sequence:
    sampling = Sampling(5, **{"temperature": 0.9, **more})
    stops = frozenset([VOCABULARY.eos])
    return Sequence("r", prompt or len(tokens), tokens, sampling, max_tokens, 0, stops, 1, logprobs=2)


def test_it_guesses_what_came_after_the_same_words() -> None:
    """The longer the words, the better; and the last time counts."""
    words = [1, 2, 3, 50, 51, 9, 2, 3, 60, 61, 1, 2, 3]

    assert [50, 51] == Lookup().guess(sequence(words), 2)
    assert [60, 61] == Lookup().guess(sequence([*words[:-3], 7, 2, 3]), 2)
    assert [] == Lookup().guess(sequence([1, 2, 3, 4, 5]), 2)


def test_what_repeats_itself_goes_on_to() -> None:
    """Beyond the end of what is there to be copied."""
    lookup = Lookup()
    lookup.judged(sequence([1]), 4, 4)

    assert [1, 2, 1, 2, 1, 2, 1] == lookup.guess(sequence([1, 2, 1, 2, 1, 2]), 7)


def test_it_stops_where_it_does_not_pay_and_tries_again() -> None:
    """A text whose pairs recur, but never go on the same, is left alone for longer and longer."""
    lookup, made = Lookup(), sequence([1, 2])
    guessed = []
    for i in range(3000):
        made.tokens += [1, 2, 100 + i]
        for end in (1, 0):
            made.tokens, rest = made.tokens[: len(made.tokens) - end], made.tokens[len(made.tokens) - end :]
            if guesses := lookup.guess(made, GUESSES):
                guessed.append(i)
                lookup.judged(made, len(guesses), 0)
            made.tokens += rest
    early = sum(i < 300 for i in guessed)

    assert 5 < early and len(guessed) < 3 * early
    assert 2000 < guessed[-1], "it never looked again"
    assert all(b - a < 1000 for a, b in itertools.pairwise(guessed))


def said(
    made: Sequence, drafter: Drafter | None, *, words: Vocabulary = VOCABULARY
) -> tuple[list[Output], int]:
    scheduler = Scheduler(2, 32, Prefixes(40), (lambda: drafter) if drafter else None)
    model = SimModel(2, words, costs=Costs(0, 0, 0), places=40)
    outputs: list[Output] = []
    loop = StepLoop(scheduler, model, outputs.extend, lambda error: None)
    scheduler.add(made)
    while loop.step():
        pass
    return outputs, loop.steps


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.0},
        {"temperature": 1.3, "top_p": 0.9},
        {"repetition": 1.3, "frequency": 0.4, "presence": 0.3},
        {"bias": {9: 4.0, 10: -5.0}, "top_k": 4},
    ],
    ids=["greedy", "sampled", "penalties", "bias"],
)
def test_guesses_change_no_token_and_no_odds(more: dict[str, Any]) -> None:
    """Right ones and wrong ones, whatever decides a token."""
    steps = {}
    for length in (1, 5, 33):
        for max_tokens in (1, 2, 9, 60):
            prompt = list(range(20, 20 + length))
            plain, slow = said(sequence(list(prompt), max_tokens=max_tokens, **more), None)
            prophet = Prophet(SimModel(1, VOCABULARY, costs=Costs(0, 0, 0)))
            guessed, fast = said(sequence(list(prompt), max_tokens=max_tokens, **more), prophet)
            steps[max_tokens] = slow, fast, prophet

            assert plain == guessed
            assert all(isinstance(output.odds, Odds) for output in plain)
    slow, fast, prophet = steps[60]

    assert fast < slow and prophet.right > 10 and prophet.wrong > 0


def test_a_text_that_repeats_itself_takes_fewer_steps() -> None:
    """With the lookup as it comes, and a model that has one word to say."""
    made = sequence([20, 21, 22], max_tokens=100, temperature=0.0, bias={30: 100.0})
    outputs, steps = said(made, Lookup())

    assert [30] * 100 == [output.token for output in outputs]
    assert list(range(100)) == [output.index for output in outputs]
    assert steps < 25


def test_guesses_keep_to_a_grammar() -> None:
    """They are held to it word for word, and a form that repeats itself is written in fewer steps."""
    grammars = Grammars(DEMO)
    form = Form("regex", "^(one, two, three; ){20}end$", "p")
    text = grammar(Wish(form, None, Voice(), False), grammars.special)
    answers, steps = [], []
    for drafter in (None, Lookup()):
        made = sequence([20, 21, 22], max_tokens=400)
        made.guide = Guide()
        made.guide.begin(grammars.matcher(text), grammars.tokens.vocab_size)
        outputs, count = said(made, drafter, words=Vocabulary(words=list(range(3, 4096)), eos=2))
        answers.append(outputs)
        steps.append(count)

    assert answers[0] == answers[1] and "stop" == answers[0][-1].finish
    assert steps[1] < steps[0] / 2
