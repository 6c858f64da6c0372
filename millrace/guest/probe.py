"""What no input or output tells of a guest is tried out with a few words, before it serves."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from millrace.convert.runtime import ort
from millrace.guest.caches import Cache, Floats, Grown, InPlace, Part
from millrace.guest.form import Form

CLOSE = 1e-2
"""Of the largest logit: 16-bit arithmetic stays well below, another sequence's words or positions do not."""

LENGTH = 24

log = logging.getLogger("millrace.guest")


@dataclass(frozen=True)
class Found:
    vocab: int
    in_place: bool
    batch: bool
    company: float
    resumed: float


def try_out(run: ort.InferenceSession, form: Form) -> Found:
    """ValueError if it cannot even go on with one sequence."""
    words = [i * 37 % 101 + 3 for i in range(LENGTH)]
    try:
        alone = _one_by_one(Grown(run, form, 3), words, 0)
        at_once = Grown(run, form, 1).advance([Part(0, 0, words)])[0]
    except Exception as error:  # ONNX Runtime has its own kinds
        raise ValueError(f"the graph does not run: {str(error).strip().splitlines()[0]}") from None
    if not np.isfinite(alone).all() or difference(at_once, alone[-1]) > CLOSE:
        raise ValueError(
            f"the graph gives other logits for words one by one than at once "
            f"(by {difference(at_once, alone[-1]):.0e}): it does not go on where it was"
        )

    def grown() -> Cache:
        return Grown(run, form, 3)

    def in_place() -> Cache:
        return InPlace(run, form, 3, 2 * LENGTH)

    make = in_place if _agrees(in_place, words, alone) else grown
    expected = _one_by_one(make(), words, 0)
    batch, company = True, 0.0
    try:
        company = difference(_in_company(make(), words), expected)
    except Exception as error:  # that it cannot is what was to be found out
        log.info("rows are run one by one, several at once fail: %s", error)
        batch = False
    if company > CLOSE:
        batch, company = False, 0.0
    resumed = max(difference(_resumed(make(), words, chunk), expected[-4:]) for chunk in (LENGTH - 4, 7))
    return Found(alone.shape[1], make is in_place, batch, company, resumed)


def difference(found: Floats, expected: Floats) -> float:
    """0 if the bits are the same."""
    if np.array_equal(found, expected):
        return 0.0
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _agrees(make: Callable[[], Cache], words: list[int], expected: Floats) -> bool:
    try:
        return difference(_one_by_one(make(), words, 1), expected) <= CLOSE
    except Exception as error:
        log.info("keys and values are not kept in place: %s", error)
        return False


def _one_by_one(cache: Cache, words: list[int], slot: int) -> Floats:
    return np.concatenate([cache.advance([Part(slot, i, [word])]) for i, word in enumerate(words)])


def _in_company(cache: Cache, words: list[int]) -> Floats:
    """The same words as a row between two others, of which one begins and one is far ahead."""
    ahead = words[::-1]
    cache.advance([Part(0, 0, ahead)])
    found = [cache.advance([Part(1, 0, words[:1])])]
    for i, word in itertools.islice(enumerate(words), 1, None):
        parts = [Part(0, LENGTH + i - 1, [word]), Part(1, i, [word]), Part(2, i - 1, [ahead[i]])]
        found.append(cache.advance(parts)[1:2])
    return np.concatenate(found)


def _resumed(cache: Cache, words: list[int], chunk: int) -> Floats:
    """The last ones, after all others were computed in chunks."""
    for start in range(0, LENGTH - 4, chunk):
        cache.advance([Part(0, start, words[start : min(start + chunk, LENGTH - 4)])])
    return np.concatenate([cache.advance([Part(0, i, [words[i]])]) for i in range(LENGTH - 4, LENGTH)])
