"""The tree of kept prefixes: what it says is there is there, and the oldest goes first."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from millrace.messages import Sampling
from services.engine.model.shelf import FileShelf
from services.engine.steps.prefix import BLOCK, LEAST, Prefixes
from services.engine.steps.sequence import Sequence

PLACES = 5


def of(*blocks: int, more: int = 0, tenant: str = "") -> Sequence:
    """Blocks of one number each, and some tokens behind them, all computed."""
    tokens = [b for b in blocks for _ in range(BLOCK)] + [99] * more
    return Sequence("r", len(tokens), tokens, Sampling(1), 1, computed=len(tokens), tenant=tenant)


def found(made: Prefixes, *blocks: int) -> int:
    places, contents = made.find(of(*blocks, more=1))
    return len(places) + len(contents)


def test_the_longest_known_prefix_is_found() -> None:
    """Two prompts share what they have in common, block for block."""
    made = Prefixes(8)
    made.keep(of(1, 2, 3))
    first, places, _ = made.keep(of(1, 2, 4))

    assert (2, 1) == (first, len(places))
    assert made.find(of(1, 2, 3, more=1))[0][:2] == made.find(of(1, 2, 4, more=1))[0][:2]
    assert 4 == len(made)


def test_the_same_block_behind_another_is_another() -> None:
    """Its keys and values are."""
    made = Prefixes(8)
    made.keep(of(1, 2))

    assert 0 == found(made, 2, 1)


def test_what_was_not_used_longest_goes_first() -> None:
    """And from its end: what is left of a prefix is a prefix."""
    made = Prefixes(4)
    made.keep(of(1, 2))
    made.keep(of(3, 4))
    made.find(of(1, 2, more=1))
    made.keep(of(5))

    assert [2, 1, 1] == [found(made, *blocks) for blocks in ((1, 2), (3, 4), (5,))]


def test_a_prompt_longer_than_the_pool_keeps_its_beginning() -> None:
    """It does not push itself out."""
    made = Prefixes(2)
    _, places, _ = made.keep(of(1, 2, 3, 4))

    assert 2 == len(places) == found(made, 1, 2, 3, 4)


def test_of_what_is_computed_apart_only_prompts_are_shared() -> None:
    """An answer's keys and values are not those that it would have as part of a prompt."""
    made, answered = Prefixes(8), of(1, 2, 3)
    answered.apart, answered.prompt_len = True, BLOCK + 1
    made.keep(answered)

    assert (1, 1) == (len(made), found(made, 1, 2, 3))

    made.keep(of(1, 2, 3))
    resumed = of(1, 2, 3, more=1)
    resumed.apart, resumed.prompt_len = True, 2 * BLOCK

    assert 2 == len(made.find(resumed)[0])


def test_without_places_nothing_is_kept() -> None:
    """A cache that is switched off costs nothing and finds nothing."""
    made = Prefixes(0)

    assert (0, [], []) == made.keep(of(1, 2))
    assert 0 == found(made, 1, 2)


TENANT = st.sampled_from("ab")
BLOCKS = st.lists(st.integers(1, 2), max_size=7)


def test_of_what_is_left_the_youngest_goes_to_the_shelf(tmp_path: Path) -> None:
    """As much as has room there, and nothing that is there already."""
    like = np.empty(4, np.uint8)
    shelf = FileShelf(tmp_path, 4096 + 2 * (64 + like.nbytes), "k", like)
    made = Prefixes(8, shelf)
    for block in (1, 2, 3):
        made.keep(of(block))
    names = [name for name, _ in made.placed()]
    before = [name for name, _ in made.left()]
    shelf.put(names[2], like)

    assert names[1:] == before
    assert names[1:2] == [name for name, _ in made.left()]


class PrefixMachine(RuleBasedStateMachine):
    """Against a pool and a shelf that hold what was copied to them; the engine stops and starts again."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.pool: dict[int, list[int]] = {}
        self.boot()

    def boot(self) -> None:
        like = np.empty(9 * BLOCK, np.uint32)
        self.shelf = FileShelf(Path(self.folder.name), 4096 + 8 * (64 + like.nbytes), "k", like)
        self.made = Prefixes(PLACES, self.shelf)

    def contents(self, tenant: str, tokens: list[int]) -> list[int]:
        """Of a block: all that came before it, and whose it was."""
        return [*([ord(tenant)] * BLOCK), *tokens, *([0] * 8 * BLOCK)][: 9 * BLOCK]

    @rule(
        tenant=st.sampled_from("ab"), blocks=st.lists(st.integers(1, 2), max_size=7), more=st.integers(0, 3)
    )
    def keep(self, tenant: str, blocks: list[int], more: int) -> None:
        given = of(*blocks, more=more, tenant=tenant)
        first, places, going = self.made.keep(given)
        for name, place in going:
            self.shelf.put(name, np.array(self.pool[place], np.uint32))
        for i, place in enumerate(places):
            self.pool[place] = self.contents(tenant, given.tokens[: (first + i + 1) * BLOCK])

    @rule(
        tenant=st.sampled_from("ab"), blocks=st.lists(st.integers(1, 2), max_size=7), more=st.integers(0, 3)
    )
    def find(self, tenant: str, blocks: list[int], more: int) -> None:
        given = of(*blocks, more=more, tenant=tenant)
        places, contents = self.made.find(given)
        read = [self.pool[place] for place in places] + [content.tolist() for content in contents]
        for i, content in enumerate(read):
            assert self.contents(tenant, given.tokens[: (i + 1) * BLOCK]) == content
        assert len(read) * BLOCK < max(1, len(given.tokens))
        assert not contents or len(contents) >= LEAST

    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        if orderly:
            for name, place in self.made.left():
                self.shelf.put(name, np.array(self.pool[place], np.uint32))
        self.shelf.close()
        self.pool.clear()
        self.boot()

    @invariant()
    def a_place_has_one_block(self) -> None:
        places = [place for _, place in self.made.placed()]
        assert len(places) == len(set(places)) == len(self.made) <= PLACES
        assert len(self.shelf) <= 8

    def teardown(self) -> None:
        self.shelf.close()
        self.folder.cleanup()


TestPrefixes = PrefixMachine.TestCase
TestPrefixes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
