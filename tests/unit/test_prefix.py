"""The tree of kept prefixes: what it says is there is there, and the oldest goes first."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.engine.prefix import BLOCK, Prefixes

PLACES = 5


def tokens(*blocks: int, more: int = 0) -> list[int]:
    """Blocks of one number each, and some tokens behind them."""
    return [b for b in blocks for _ in range(BLOCK)] + [99] * more


def test_the_longest_known_prefix_is_found() -> None:
    """Two prompts share what they have in common, block for block."""
    made = Prefixes(8)
    made.keep("", tokens(1, 2, 3), 3 * BLOCK)
    start, places = made.keep("", tokens(1, 2, 4), 3 * BLOCK)

    assert (2 * BLOCK, 1) == (start, len(places))
    assert made.find("", tokens(1, 2, 3, more=1))[:2] == made.find("", tokens(1, 2, 4, more=1))[:2]
    assert 4 == len(made)


def test_the_same_block_behind_another_is_another() -> None:
    """Its keys and values are."""
    made = Prefixes(8)
    made.keep("", tokens(1, 2), 2 * BLOCK)

    assert [] == made.find("", tokens(2, 1))


def test_what_was_not_used_longest_goes_first() -> None:
    """And from its end: what is left of a prefix is a prefix."""
    made = Prefixes(4)
    made.keep("", tokens(1, 2), 2 * BLOCK)
    made.keep("", tokens(3, 4), 2 * BLOCK)
    made.find("", tokens(1, 2, more=1))
    made.keep("", tokens(5), BLOCK)

    assert [2, 1, 1] == [len(made.find("", tokens(*t, more=1))) for t in ((1, 2), (3, 4), (5,))]


def test_a_prompt_longer_than_the_pool_keeps_its_beginning() -> None:
    """It does not push itself out."""
    made = Prefixes(2)
    _, places = made.keep("", tokens(1, 2, 3, 4), 4 * BLOCK)

    assert 2 == len(places) == len(made.find("", tokens(1, 2, 3, 4)))


def test_without_places_nothing_is_kept() -> None:
    """A cache that is switched off costs nothing and finds nothing."""
    made = Prefixes(0)

    assert (0, []) == made.keep("", tokens(1, 2), 2 * BLOCK)
    assert [] == made.find("", tokens(1, 2))


class PrefixMachine(RuleBasedStateMachine):
    """Against a pool that remembers what was copied to each place."""

    def __init__(self) -> None:
        super().__init__()
        self.made = Prefixes(PLACES)
        self.pool: dict[int, tuple[str, list[int]]] = {}

    @rule(
        tenant=st.sampled_from("ab"), blocks=st.lists(st.integers(1, 2), max_size=7), more=st.integers(0, 3)
    )
    def keep(self, tenant: str, blocks: list[int], more: int) -> None:
        given = tokens(*blocks, more=more)
        start, places = self.made.keep(tenant, given, len(given))
        for i, place in enumerate(places):
            self.pool[place] = tenant, given[: start + (i + 1) * BLOCK]

    @rule(
        tenant=st.sampled_from("ab"), blocks=st.lists(st.integers(1, 2), max_size=7), more=st.integers(0, 3)
    )
    def find(self, tenant: str, blocks: list[int], more: int) -> None:
        given = tokens(*blocks, more=more)
        places = self.made.find(tenant, given)
        for i, place in enumerate(places):
            assert (tenant, given[: (i + 1) * BLOCK]) == self.pool[place]
        assert len(places) * BLOCK < max(1, len(given))

    @invariant()
    def a_place_has_one_block(self) -> None:
        places = list(self.made.places())
        assert len(places) == len(set(places)) == len(self.made) <= PLACES


TestPrefixes = PrefixMachine.TestCase
TestPrefixes.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
