"""A draft goes ahead of a sequence: it follows what is said, is right as often as it can be, and stops where
it does not pay."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from millrace import models, possible, settings
from millrace.grammar import Grammars
from millrace.messages import Form, Sampling, Voice
from services.engine.choice.sample import Candidates
from services.engine.guesses.draft import Draft, Guesser
from services.engine.loop import StepLoop
from services.engine.model.sim import Costs, SimModel, Vocabulary
from services.engine.steps.guide import Guide
from services.engine.steps.scheduler import Output, Scheduler, Step
from services.engine.steps.sequence import Sequence, State
from services.tokenizer.constrain import grammar
from services.tokenizer.wish import Wish

DEMO = Path(__file__).parents[2] / "models" / "demo"
WORDS = Vocabulary(words=list(range(3, 4096)), eos=2)
CHUNK = 16


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(SimModel):
    """Takes its time by a clock of ours; and notes the steps."""

    def __init__(self, slots: int, clock: Clock, seconds: float, words: Vocabulary = WORDS, **more: Any):
        super().__init__(slots, words, costs=Costs(0, 0, 0), eos_chance=0.0, **more)
        self._clock, self._seconds = clock, seconds
        self.steps: list[Step] = []

    def run(self, step: Step) -> Candidates:
        tokens = step.chunk.count if step.chunk else 1
        self._clock.now += self._seconds * (1 + 0.02 * tokens)
        self.steps.append(step)
        return super().run(step)


class Watched(Guesser):
    """Tells what the draft guessed, and how much of it was right."""

    def __init__(self, draft: Draft, told: list[tuple[int, int]]):
        super().__init__(draft)
        self._told = told

    def judged(self, sequence: Sequence, guessed: int, right: int) -> None:
        if not self._looked_up:
            self._told.append((guessed, right))
        super().judged(sequence, guessed, right)


class World:
    """An engine with a draft, or without."""

    def __init__(
        self,
        *,
        cost: float = 0.1,
        words: Vocabulary = WORDS,
        kind: int = 0,
        max_len: int = 4096,
        guessing: bool = True,
    ):
        clock = Clock()
        self.model = Timed(2, clock, 1.0)
        self.small = Timed(1, clock, cost, words, kind=kind)
        self.draft = Draft(self.small, 4096, max_len, CHUNK, clock)
        self.told: list[tuple[int, int]] = []
        drafter = (lambda: Watched(self.draft, self.told)) if guessing else None
        self.scheduler = Scheduler(2, CHUNK, None, drafter)
        self.outputs: list[Output] = []
        self.loop = StepLoop(self.scheduler, self.model, self.outputs.extend, lambda error: None)

    def says(self, *those: Sequence) -> list[Output]:
        for sequence in those:
            self.scheduler.add(sequence)
        self.outputs.clear()
        while self.loop.step():
            pass
        return list(self.outputs)


def sequence(
    name: str = "r", *, prompt: int = 40, answers: int = 100, tenant: str = "", **more: Any
) -> Sequence:
    sampling = Sampling(5, **{"temperature": 0.9, **more})
    tokens = [20 + 7 * i % 301 for i in range(prompt)]
    stops = frozenset([WORDS.eos])
    return Sequence(name, prompt, tokens, sampling, answers, 0, stops, 1, tenant=tenant, logprobs=2)


def held_to(made: Sequence, form: str) -> Sequence:
    grammars = Grammars(DEMO)
    text = grammar(Wish(Form("regex", form, "p"), None, Voice(), False), grammars.special)
    made.guide = Guide()
    made.guide.begin(grammars.matcher(text), grammars.tokens.vocab_size)
    return made


WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.3, "top_p": 0.9},
    "penalties": {"repetition": 1.3, "frequency": 0.4, "presence": 0.3, "bias": {9: 8.0, 10: 8.0}},
    "bias": {"bias": {9: 9.0, 10: 9.0, 5000: 3.0}, "top_k": 4},
    "min_tokens": {"bias": {2: 40.0}},
}


@pytest.mark.parametrize("wish", [*WISHES, "grammar"])
def test_the_same_model_is_always_right(wish: str) -> None:
    """Whatever decides a token decides the guess at it: also after what was looked up turned out wrong."""

    def made() -> Sequence:
        one = sequence(**WISHES.get(wish, {}))
        one.min_tokens = 30 if wish == "min_tokens" else 0
        return held_to(one, "^([a-f]{3}, ){30}end$") if wish == "grammar" else one

    plain, world = World(guessing=False), World()
    expected, said = plain.says(made()), world.says(made())

    assert expected == said and len(said) > 30
    assert len(world.model.steps) < len(plain.model.steps) / 2
    assert world.told and all(right == guessed for guessed, right in world.told)


@pytest.mark.parametrize("wish", WISHES)
def test_a_guess_depends_on_what_was_said_alone(wish: str) -> None:
    """Not on what had been guessed before, of which any part may have turned out wrong: whoever begins with
    the same text guesses the same."""

    def made() -> Draft:
        return Draft(SimModel(1, WORDS, costs=Costs(0, 0, 0)), 4096, 4096, 4096)

    rng, draft, one = random.Random(3), made(), sequence(answers=400, **WISHES[wish])
    one.min_tokens = 100
    while one.answered < 150:
        most = rng.randint(1, 7)
        again = sequence(answers=400, **WISHES[wish])
        again.tokens, again.min_tokens = list(one.tokens), one.min_tokens
        guesses = draft.guess(one, most)

        assert made().guess(again, most) == guesses
        one.tokens += [*guesses[: rng.randint(0, 7)], *rng.choice([[], [9], [10, 2000]])] or [11]


@pytest.mark.parametrize("seed", range(4))
def test_answers_are_the_same_in_any_company(seed: int) -> None:
    """Sequences join, are dropped, come again with what was committed, and leave; of two drafts one is no
    good at all. The simulated models take no token that does not follow those they hold."""
    rng = random.Random(seed)
    words = WORDS if seed % 2 else Vocabulary(words=list(range(3900, 4096)), eos=2)
    world = World(words=words, kind=seed % 2)
    wishes = {f"r{i}": (i * 11 % 50 + 1, rng.choice(list(WISHES))) for i in range(12)}

    def made(name: str, said: int = 0) -> Sequence:
        prompt, wish = wishes[name]
        one = sequence(name, prompt=prompt, answers=80, tenant=str(prompt % 2), **WISHES[wish])
        one.min_tokens = 30 if wish == "min_tokens" else 0
        one.tokens += answers[name][:said] if said else []
        return one

    answers: dict[str, list[int]] = {}
    for name in wishes:
        answers[name] = [output.token for output in World(guessing=False).says(made(name))]
    coming, live = list(wishes), set[str]()
    told: dict[str, list[int]] = {}
    while coming or live:
        if coming and (not live or rng.random() < 0.015):
            name = coming.pop()
            told[name] = answers[name][: rng.choice([0, 0, 20])]
            world.scheduler.add(made(name, len(told[name])))
            live.add(name)
        if live and rng.random() < 0.01:
            name = rng.choice(sorted(live))
            world.scheduler.drop(name)
            live.discard(name)
            coming.insert(0, name)
        world.outputs.clear()
        world.loop.step()
        for output in world.outputs:
            told[output.request].append(output.token)
            if output.finish:
                live.discard(output.request)

    assert answers == told
    assert world.scheduler.counts["guessed"] > 5
    assert seed % 2 == 0 or world.scheduler.counts["guessed_right"] > 100


def test_what_is_not_known_yet_is_caught_up_on_a_chunk_a_step() -> None:
    """And of a text that it holds the beginning of already, only the rest: but not of another tenant's."""
    world = World()
    world.says(sequence("a", prompt=100, answers=30))
    caught_up = []
    for name, tenant in (("again", ""), ("another's", "bob")):
        world.small.steps.clear()
        world.says(sequence(name, prompt=100, answers=30, tenant=tenant))
        caught_up.append(sum(step.chunk.count for step in world.small.steps if step.chunk))

        assert all(step.chunk is None or step.chunk.count <= CHUNK for step in world.small.steps)
    again, others = caught_up

    assert again < 50
    assert others >= 100


def test_a_draft_that_is_no_good_is_left_alone() -> None:
    """After a few guesses, and sooner in answers that come later; it is tried again now and then."""
    world = World(words=Vocabulary(words=list(range(3900, 4096)), eos=2))
    guesses = []
    for i in range(12):
        world.told.clear()
        world.says(sequence(f"{i}", answers=600 if i in (0, 11) else 100))
        guesses.append(len(world.told))

    assert 3 < guesses[0] < 40
    assert 0 < guesses[-1] < guesses[0]


@pytest.mark.parametrize(("cost", "pays"), [(0.05, True), (0.5, True), (1.1, False)])
def test_what_costs_more_than_it_saves_is_left_alone(cost: float, pays: bool) -> None:
    """Although it is always right; the dearer it is, the fewer are guessed."""
    world = World(cost=cost)
    began = world.draft.clock()
    world.says(sequence(prompt=10, answers=1000))
    seconds = world.draft.clock() - began
    guessed = sum(guessed for guessed, _ in world.told)

    assert (guessed > 300) == pays
    assert seconds < (600 * (1 + cost) if pays else 1100)


def test_its_slot_is_not_taken_from_a_sequence_that_runs() -> None:
    """Whoever has it gives it back by ending."""
    world = World()
    a, b = sequence("a"), sequence("b")
    a.state = b.state = State.RUNNING
    world.draft.guess(a, 2)
    with pytest.raises(AssertionError, match="another sequence's"):
        world.draft.guess(b, 2)
    a.state = State.ENDED
    while not (guesses := world.draft.guess(b, 2)):
        pass

    assert 2 == len(guesses)


def test_words_that_one_of_them_does_not_have_are_not_guessed_at() -> None:
    """Tables of words have room at their ends; nothing there is said, but if it is, nothing breaks."""
    world = World()
    strange = sequence("a", prompt=10)
    strange.tokens[5] = 4096
    a = World(guessing=False).says(sequence("b", answers=300, bias={4094: 60.0}))
    draft = Draft(SimModel(1, WORDS, costs=Costs(0, 0, 0)), 4094, 4096, CHUNK)

    assert [] == world.draft.guess(strange, 3)
    assert {4094} == {output.token for output in a}
    assert [] == draft.guess(sequence("c", prompt=10, bias={4094: 60.0}), 3)


def test_beyond_its_own_context_it_does_not_follow() -> None:
    """The engine's model may have a longer one."""
    world = World(max_len=60)
    said = world.says(sequence(prompt=20, answers=100))

    assert 100 == len(said)
    assert max(step.sequences[0].computed for step in world.small.steps) <= 60


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"draft": "sim"}, "sim is simulated"),
        ({"draft": "demo", "speculate": False}, "--no-speculate"),
        ({"draft": "demo", "device": "cuda"}, "--device cuda"),
        ({"draft": "nowhere"}, "no model 'nowhere'"),
    ],
)
def test_what_cannot_guess_is_refused(given: dict[str, Any], said: str) -> None:
    """By what was asked for, and why."""
    with pytest.raises(settings.SettingError, match=said):
        possible.draft(models.find("demo"), settings.Engine(**given))


def test_other_words_are_refused(tmp_path: Path) -> None:
    """With both models' names, and the first word that only one has."""
    folder = tmp_path / "other"
    shutil.copytree(DEMO, folder)
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    word = next(word for word, id in vocabulary.items() if id == 300)
    vocabulary[word + "x"] = vocabulary.pop(word)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(settings.SettingError) as caught:
        possible.draft(models.find("demo"), settings.Engine(draft=str(folder)))

    for part in (str(folder), "those of demo", "other 4", f"'{word}", "number 300"):
        assert part in str(caught.value)
