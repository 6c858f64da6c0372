"""Sampling: a pure function of the logits, the request, the position and the tokens so far."""

import math
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from millrace.messages import Sampling
from services.engine.choice import lone
from services.engine.choice.order import Order
from services.engine.choice.sample import FEW, Candidates, choose, uniform
from services.engine.steps.sequence import Sequence
from tests.kit import slow_sampler


def at(position: int, sampling: Sampling, **more: object) -> Sequence:
    return Sequence("r", 1, [1] * (1 + position), sampling, 100, **more)  # type: ignore[arg-type]


def candidates(*rows: list[float], k: int = 64) -> Candidates:
    """As a model gives them, with the best `k` of each row."""
    full = np.array(rows, np.float32)
    ids = np.stack([np.lexsort((np.arange(len(row)), -row))[:k] for row in full])
    return Candidates(ids, np.take_along_axis(full, ids, axis=1), full.shape[1], lambda: full)


FLAT = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]


def test_temperature_zero_takes_the_best() -> None:
    """Greedy is greedy, whatever the seed."""
    assert [0] * 50 == [choose(candidates(FLAT), [at(p, Sampling(p, 0.0))])[0] for p in range(50)]


def test_choices_follow_the_probabilities() -> None:
    """Over many positions, each token is chosen about as often as its probability says."""
    logits = [2.0, 1.0, 0.0]
    expected = np.exp(logits) / np.exp(logits).sum()
    for k in (1, 2, 3):
        chosen = [choose(candidates(logits, k=k), [at(p, Sampling(7))])[0] for p in range(2000)]

        assert expected.tolist() == pytest.approx([chosen.count(i) / 2000 for i in range(3)], abs=0.04)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(1, 1.0, 1.0, 2), {0, 1}),
        (Sampling(1, 1.0, 0.0), {0}),
        (Sampling(1, 1.0, 0.4), {0, 1, 2}),
        (Sampling(1, 1.0, 1.0), {0, 1, 2, 3, 4, 5}),
        (Sampling(1, 1.0, min_p=0.75), {0, 1, 2}),
        (Sampling(1, 0.1, min_p=0.75), {0}),
    ],
)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_top_k_top_p_and_min_p_leave_out_the_rest(sampling: Sampling, allowed: set[int], k: int) -> None:
    """All that may be chosen is, and nothing else: 0.40 of the mass is within the best three here."""
    logits = [0.0] * 6 if sampling.top_p == 0.4 else FLAT
    chosen = {choose(candidates(logits, k=k), [at(p, sampling)])[0] for p in range(600)}

    assert allowed == chosen


def test_stop_tokens_wait_for_min_tokens() -> None:
    """Before that many tokens are there, no stop token is chosen, however likely it is."""
    early, late = (at(p, Sampling(1, 0.0), min_tokens=3, stop_ids=frozenset([0])) for p in (2, 3))

    assert [1, 0] == choose(candidates(FLAT, FLAT), [early, late])


def test_ids_the_model_does_not_have_change_nothing() -> None:
    """A tokenizer may know more words than the model has logits for."""
    sampling = Sampling(1, 0.0, bias={99: 100.0, 2: 1.0})
    wild = at(0, sampling, min_tokens=5, stop_ids=frozenset([2**31]))

    assert [2] == choose(candidates(FLAT), [wild])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1, 0.0), 0),
        (Sampling(1, 0.0, bias={5: 0.6}), 5),
        (Sampling(1, 0.0, bias={0: -100}), 1),
        (Sampling(1, 0.0, repetition=1.2), 1),  # 1.0 / 1.2 < 0.9; the prompt counts
        (Sampling(1, 0.0, repetition=1.1), 0),
        (Sampling(1, 0.0, presence=0.15), 0),  # the answer does not have it
        (Sampling(1, 0.0, frequency=0.15), 0),
    ],
)
def test_what_a_prompt_is_charged_for(sampling: Sampling, expected: int) -> None:
    """Repetition counts the prompt too; presence and frequency the answer alone."""
    sequence = Sequence("r", 3, [0, 0, 0], sampling, 9)

    assert [expected] == choose(candidates(FLAT, k=2), [sequence])


def test_frequency_grows_and_presence_does_not() -> None:
    """A token said three times loses three times the frequency penalty, and the presence penalty once."""
    answers = [[5], [5, 0], [5, 0, 0], [5, 0, 0, 0]]

    def chosen(sampling: Sampling) -> list[int]:
        return choose(candidates(*[FLAT] * 4), [Sequence("r", 1, tokens, sampling, 9) for tokens in answers])

    assert [0, 0, 0, 1] == chosen(Sampling(1, 0.0, frequency=0.04))
    assert [0, 0, 0, 0] == chosen(Sampling(1, 0.0, presence=0.04))
    assert [0, 1, 1, 1] == chosen(Sampling(1, 0.0, presence=0.14))


def test_a_table_that_grew_is_one_made_at_once() -> None:
    """Followed token by token, or from the middle of an answer as after a resume: the same choice."""
    sampling = Sampling(3, 1.0, repetition=1.3, frequency=0.2, presence=0.1, bias={4: 1.0})
    row = [math.sin(i) for i in range(300)]
    grown = Sequence("r", 4, [1, 2, 3, 4], sampling, 500)
    for _ in range(200):
        resumed = Sequence("r", 4, list(grown.tokens), sampling, 500)
        (token,) = choose(candidates(row), [grown])

        assert [token] == choose(candidates(row), [resumed])
        grown.append(token)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[float]], list[Sequence], int]:
    """Rows of logits with ties and gaps, and requests that want all kinds of things."""
    vocab = draw(st.sampled_from([3, 40, 150]))
    random = Random(draw(st.integers(0, 2**32)))
    spread, digits = draw(st.sampled_from([0.1, 1.0, 4.0, 12.0])), draw(st.sampled_from([0, 1, 7]))
    logits, sequences = [], []
    for _ in range(draw(st.integers(1, 4))):
        logits.append([float(np.float32(round(random.gauss(0, spread), digits))) for _ in range(vocab)])
        sampling = Sampling(
            random.getrandbits(63),
            temperature=random.choice([0, 1e-4, 0.3, 1, 2]),
            top_p=random.choice([1, 1, 0.9, 0.5, 0.05]),
            top_k=random.choice([0, 0, 1, 5, 50, 200]),
            min_p=random.choice([0, 0, 0.1, 0.9]),
            presence=random.choice([0, 0, 1.5, -2]),
            frequency=random.choice([0, 0, 0.7, -1]),
            repetition=random.choice([1, 1, 1.3, 0.7]),
            bias={
                random.randrange(vocab + 10): random.choice([-100, 100, 1, -1.5])
                for _ in range(random.choice([0, 0, 1, 5, 30]))
            },
        )
        prompt, answer = random.randint(1, 9), random.randint(0, 12)
        sequence = Sequence(
            "r",
            prompt,
            [random.randrange(vocab) for _ in range(prompt + answer)],
            sampling,
            99,
            random.choice([0, 0, 20]),
            frozenset([random.randrange(2, vocab + 5)]),
        )
        if random.random() < 0.3:
            known = max(2, vocab + random.choice([0, 0, 70, -35]))  # to the grammar
            sequence.allowed = mask({1, *random.sample(range(known), random.randint(1, known - 1))}, known)
        sequences.append(sequence)
    times = draw(st.sampled_from([1, FEW + 1]))  # few rows are chosen one by one, more all at once
    return logits * times, sequences * times, draw(st.sampled_from([1, 2, 8, 64]))


def mask(allowed: set[int], vocab: int) -> npt.NDArray[np.int32]:
    bits = [i in allowed for i in range((vocab + 31) // 32 * 32)]
    return np.packbits(bits, bitorder="little").view(np.int32)


@given(rows())
def test_the_slow_sampler_agrees(made: tuple[list[list[float]], list[Sequence], int]) -> None:
    """Each choice is the one of the rule written plainly, however few candidates the model gives."""
    logits, sequences, k = made
    randoms = uniform(
        np.array([s.sampling.seed for s in sequences], np.uint64),
        np.array([s.answered for s in sequences], np.uint64),
    ).tolist()
    expected = [slow_sampler.choose(*each) for each in zip(logits, sequences, randoms, strict=True)]

    assert expected == choose(candidates(*logits, k=k), sequences)


@given(rows())
def test_the_slow_sampler_agrees_where_nothing_but_a_mask_is_in_the_way(
    made: tuple[list[list[float]], list[Sequence], int],
) -> None:
    """Of the best tokens, which are found in another way then."""
    logits, sequences, k = made
    for sequence in sequences:
        sequence.sampling, sequence.min_tokens = Sampling(1, 0.0), 0
    expected = [slow_sampler.choose(*each, 0.0) for each in zip(logits, sequences, strict=True)]

    assert expected == choose(candidates(*logits, k=k), sequences)


@pytest.mark.parametrize(
    "sampling", [Sampling(3, 0.0), Sampling(3), Sampling(3, 0.7, 0.8, 20), Sampling(3, min_p=0.1)]
)
@pytest.mark.parametrize("bias", [{}, {250: 2.0, 299: -3.0, 1: 1.0}])
@pytest.mark.parametrize(
    ("spread", "least", "most", "k"), [(3, 1, 7, 8), (0.3, 200, 300, 8), (1.5, 200, 300, 64)]
)
def test_the_slow_sampler_agrees_where_candidates_do_not_tell(
    sampling: Sampling, bias: dict[int, float], spread: float, least: int, most: int, k: int
) -> None:
    """Few unlikely tokens are allowed, or many that are nearly equal."""
    random = Random(5)
    sampling = structs.replace(sampling, bias=bias)
    for position in range(40):
        logits = [float(np.float32(random.gauss(0, spread))) for _ in range(300)]
        one = at(position, sampling)
        unlikely = sorted(range(300), key=lambda i: logits[i])[:280] if most < 20 else list(range(300))
        one.allowed = mask({*random.sample(unlikely, random.randint(least, min(most, len(unlikely))))}, 300)
        drawn = lone.random(sampling.seed, one.answered)
        expected = slow_sampler.choose(logits, one, drawn)

        assert [expected] * (FEW + 1) == choose(candidates(*[logits] * (FEW + 1), k=k), [one] * (FEW + 1))


@given(rows())
def test_neighbours_change_nothing(made: tuple[list[list[float]], list[Sequence], int]) -> None:
    """A row's choice is the same alone, anywhere in a batch, and asked again."""
    logits, sequences, k = made
    alone = [
        choose(candidates(row, k=k), [sequence])[0] for row, sequence in zip(logits, sequences, strict=True)
    ]
    backwards = choose(candidates(*logits[::-1], k=k), sequences[::-1])

    assert alone == backwards[::-1]


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0, 0.7, 0.9, 20), Sampling(0, 2.0, 0.5)])
@pytest.mark.parametrize("k", [64, 300])
def test_a_lone_row_is_mostly_told_and_never_otherwise(sampling: Sampling, k: int) -> None:
    """From its candidates alone, the token is what looking at all rows at once makes it."""
    random, told = Random(k), 0
    for position in range(200):
        row = [random.gauss(0, 8) for _ in range(300)]
        one, given = at(position, sampling), candidates(row, k=k)
        best = given.logits[0].tolist()
        place = lone.place(best, len(row) - len(best), sampling, one.answered)
        if place >= 0:
            told += 1
            many = candidates(*[row] * (FEW + 1), k=k)
            assert [given.ids[0, place]] * (FEW + 1) == choose(many, [one] * (FEW + 1))

    assert told > 100


@given(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 5.0, 80.0, -1000.0, -math.inf]), min_size=1, max_size=50),
    st.sampled_from([0.2, 1.0, 2.0]),
)
def test_an_order_found_in_buckets_is_the_order(logits: list[float], temperature: float) -> None:
    """Every token is where sorting puts it, with the weight of all before it."""
    if max(logits) == -math.inf:
        return
    order = Order(np.array(logits), temperature, 0.0)
    mass, weights = 0.0, [math.exp((x - max(logits)) / temperature) for x in logits]
    for count, i in enumerate(sorted(range(len(logits)), key=lambda i: (-logits[i], i)), 1):
        token, reached = order.at(mass + weights[i] / 2)
        mass += weights[i]
        assert mass == pytest.approx(order.first(count))
        if weights[i] > 1e-9:  # the others are lost in the sum
            assert i == token
            assert mass == pytest.approx(reached)


def test_random_numbers_are_fixed_for_ever() -> None:
    """A resume on a newer version must draw the same: these values never change."""
    seeds, positions = np.array([0, 1, 2**63 - 1], dtype=np.uint64), np.array([0, 1, 77], dtype=np.uint64)

    assert GOLDEN == uniform(seeds, positions).tolist()
    assert GOLDEN == [lone.random(*each) for each in zip(seeds.tolist(), positions.tolist(), strict=True)]


GOLDEN = [0.6524484863740322, 0.9435642308648544, 0.5547341087718884]
