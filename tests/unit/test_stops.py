"""Stop strings: the same answer however its text is cut."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.detokenizer.stops import StopMatcher

# Two letters, so that the texts are full of beginnings that fail late.
TEXT = st.text("ab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=3).map(tuple)


def oracle(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The rule as it is written: complete first; of those that end together, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(TEXT, STOPS, st.booleans(), st.lists(st.integers(0, 24)))
@example("aaab", ("aab",), False, [2])  # a beginning that fails holds a later one
@example("abababb", ("ababb", "bb"), True, [1, 4])
def test_every_split_gives_the_answer_of_the_rule(
    text: str, stops: tuple[str, ...], include: bool, cuts: list[int]
) -> None:
    """Which stop string ends the answer, and what is shown, does not depend on the pieces."""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    matcher = StopMatcher(stops, include)
    shown = "".join(matcher.feed(text[start:end]) for start, end in pairwise(places))
    shown += matcher.flush()

    assert oracle(text, stops, include) == (shown, matcher.stopped)


@given(TEXT, STOPS)
def test_no_more_is_held_back_than_may_become_a_stop(text: str, stops: tuple[str, ...]) -> None:
    """Without a stop so far, all is shown but the longest end that is the beginning of a stop string."""
    matcher = StopMatcher(stops)
    shown = "".join(map(matcher.feed, text))
    held = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]

    if matcher.stopped is None:
        assert text[: len(text) - max(held, default=0)] == shown


def test_without_stops_text_passes_through() -> None:
    """The usual request has no stop strings, and nothing is held back."""
    matcher = StopMatcher(())

    assert (matcher.feed("one"), matcher.feed(""), matcher.feed(" two")) == ("one", "", " two")
    assert (matcher.flush(), matcher.stopped) == ("", None)


def test_nothing_follows_a_stop() -> None:
    """Text after the stop string is not shown, in the same piece or a later one."""
    matcher = StopMatcher(("\n\n",), include=True)

    assert [*map(matcher.feed, ("a\n", "\nb", "c")), matcher.flush()] == ["a", "\n\n", "", ""]
    assert matcher.stopped == "\n\n"


def test_of_stops_that_end_together_the_longest_wins() -> None:
    """The order of the list means nothing."""
    for stops in (("END", "THE END"), ("THE END", "END")):
        matcher = StopMatcher(stops)

        assert (matcher.feed("This is THE END."), matcher.stopped) == ("This is ", "THE END")


def test_an_empty_stop_string_is_refused() -> None:
    """It would stop every answer before it begins."""
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(("a", ""))


def test_a_hostile_stop_string_costs_no_more_than_its_length() -> None:
    """A long string of one letter, against an answer of that letter, stays linear."""
    matcher = StopMatcher(("a" * 50_000 + "b",))
    begun = time.process_time()
    for _ in range(1000):
        matcher.feed("aaaa")

    assert matcher.feed("a") == ""
    assert time.process_time() - begun < 2  # seconds; a search of the tail each time takes minutes
