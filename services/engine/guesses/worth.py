"""Whether guessing pays: what guesses cost, how often they are right, and when to let it be for a while."""

PRICE, PRICE_BY_LENGTH = 0.1, 1 / 6000
"""What a guess costs, in steps of a lone row: so much, and more for each token before it, as attention looks
at them once more. Measured with a 135M model: eight at once take 1.8 steps at 256 tokens, 2.8 at 1024."""

REST = 16
"""Tokens without a guess after it did not pay; twice as many after each time that nothing was won."""

LONGEST_REST = 1024


def price(length: int) -> float:
    """Of the verification of a guess behind so many tokens."""
    return PRICE + PRICE_BY_LENGTH * length


class Rest:
    """Of one sequence, counted in its tokens."""

    def __init__(self) -> None:
        self._tokens = REST
        self._until = 0

    def over(self, length: int) -> bool:
        return length >= self._until

    def begin(self, length: int) -> None:
        self._until = length + self._tokens
        self._tokens = min(LONGEST_REST, 2 * self._tokens)

    def won(self) -> None:
        self._tokens = REST


class Mean:
    """Of what was measured of late."""

    def __init__(self, over: int, value: float = 0.0):
        """`over`: how many of the last values count most of it."""
        self.value = value
        self._over = over

    def add(self, value: float) -> None:
        self.value += (value - self.value) / (self._over if self.value else 1)


def gain(share: float, count: int, cost: float) -> float:
    """Tokens for the time of one, if such a share of guesses is right and each costs so much of a step."""
    tokens = count + 1 if share >= 1 else (1 - share ** (count + 1)) / (1 - share)
    return float(tokens / (1 + count * cost))


def best(share: float, most: int, cost: float) -> int:
    """How many guesses at once pay most; 0, if it is none."""
    return max(range(most + 1), key=lambda count: gain(share, count, cost))
