"""Sampling: a pure function of the candidates, the seed and the position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.messages import Sampling
from services.engine.sample import Candidates, choose, uniform
from services.engine.sequence import Sequence


def at(position: int, sampling: Sampling, **more: object) -> Sequence:
    return Sequence("r", 1, [1] * (1 + position), sampling, 100, **more)  # type: ignore[arg-type]


def candidates(*rows: list[float]) -> Candidates:
    ids = np.tile(np.arange(10, 10 + len(rows[0]), dtype=np.int64), (len(rows), 1))
    return Candidates(ids, np.array(rows, dtype=np.float32))


FLAT = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]


def test_temperature_zero_takes_the_best() -> None:
    """Greedy is greedy, whatever the seed."""
    assert [10] * 50 == [choose(candidates(FLAT), [at(p, Sampling(p, 0.0))])[0] for p in range(50)]


@given(st.integers(0, 2**63 - 1), st.integers(0, 4000))
def test_neighbours_change_nothing(seed: int, position: int) -> None:
    """A row's choice is the same alone and anywhere in a batch."""
    mine = at(position, Sampling(seed, 0.9, 0.95, 5))
    others = [at(i, Sampling(i, 1.5)) for i in range(4)]

    alone = choose(candidates(FLAT), [mine])
    among = choose(candidates(*[FLAT] * 5), [*others[:2], mine, *others[2:]])

    assert alone == among[2:3]


def test_choices_follow_the_probabilities() -> None:
    """Over many positions, each candidate is chosen about as often as its probability says."""
    logits = [2.0, 1.0, 0.0]
    chosen = [choose(candidates(logits), [at(p, Sampling(7))])[0] for p in range(4000)]
    expected = np.exp(logits) / np.exp(logits).sum()

    assert expected.tolist() == pytest.approx([chosen.count(10 + i) / 4000 for i in range(3)], abs=0.03)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(1, 1.0, 1.0, 2), {10, 11}),
        (Sampling(1, 1.0, 0.0), {10}),
        (Sampling(1, 1.0, 0.4), {10, 11, 12}),
        (Sampling(1, 1.0, 1.0), {10, 11, 12, 13, 14, 15}),
    ],
)
def test_top_k_and_top_p_leave_out_the_rest(sampling: Sampling, allowed: set[int]) -> None:
    """All that may be chosen is, and nothing else: 0.40 of the mass is within the best three here."""
    chosen = {
        choose(candidates([0.0] * 6 if sampling.top_p == 0.4 else FLAT), [at(p, sampling)])[0]
        for p in range(600)
    }

    assert allowed == chosen


def test_stop_tokens_wait_for_min_tokens() -> None:
    """Before that many tokens are there, no stop token is chosen, however likely it is."""
    early, late = (at(p, Sampling(1, 0.0), min_tokens=3, stop_ids=frozenset([10])) for p in (2, 3))

    assert [11, 10] == choose(candidates(FLAT, FLAT), [early, late])


def test_random_numbers_are_fixed_for_ever() -> None:
    """A resume on a newer version must draw the same: these values never change."""
    seeds, positions = np.array([0, 1, 2**63 - 1], dtype=np.uint64), np.array([0, 1, 77], dtype=np.uint64)

    assert GOLDEN == uniform(seeds, positions).tolist()


GOLDEN = [0.6524484863740322, 0.9435642308648544, 0.5547341087718884]
