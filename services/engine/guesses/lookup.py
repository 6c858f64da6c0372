"""Guesses at what a sequence says next: what followed the same words before, in its prompt or its answer.

The engine verifies guesses by computing them all in one step, and takes those that it would have chosen
itself. So a guess can be wrong at no cost but its own, and a drafter may be as simple as it likes.
"""

from services.engine.guesses.worth import Rest, price
from services.engine.steps.sequence import Sequence

GRAMS = (3, 2)  # words that have to be the same, the longer the likelier to go on the same

PURSE = 2.0
"""Steps that a sequence may lose on guesses beyond what it has won by them."""


class Lookup:
    """Of one sequence."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # what came after these words when they came last
        self._read = 0
        self._count = 2  # guesses, the next time
        self._purse = PURSE
        self._rest = Rest()

    def guess(self, sequence: Sequence, most: int) -> list[int]:
        """At most so many tokens; none, if nothing is known or guessing has not paid of late."""
        tokens = sequence.tokens
        if not self._rest.over(len(tokens)):
            return []
        self._learn(tokens)
        for size in GRAMS:
            at = self._after.get(tuple(tokens[-size:]))
            if at is not None:
                # A text that repeats itself does so beyond its own end.
                period = len(tokens) - at
                return [tokens[at + i % period] for i in range(min(self._count, most))]
        return []

    def _learn(self, tokens: list[int]) -> None:
        for at in range(max(self._read, GRAMS[-1]), len(tokens)):
            for size in GRAMS:
                if size <= at:
                    self._after[tuple(tokens[at - size : at])] = at
        self._read = len(tokens)

    def judged(self, sequence: Sequence, guessed: int, right: int) -> None:
        """So many of the guesses were right."""
        self._count = 2 * guessed if right == guessed else right + 1
        self._purse = min(PURSE, self._purse + right - guessed * price(len(sequence.tokens)))
        if right:
            self._rest.won()
        if self._purse < 0:
            self._purse = PURSE / 4
            self._rest.begin(len(sequence.tokens))
