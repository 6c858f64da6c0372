"""Who is suspected of crashing engines, and who is given up for it."""

import pytest

from services.gateway.owner.blame import Blame


def lost(times: int, *, alone: bool = False, went_on: bool = False, dead: bool = True) -> Blame:
    blame = Blame()
    for i in range(times):
        blame.lost(f"e{i}", dead=dead, alone=alone, went_on=went_on)
    return blame


@pytest.mark.parametrize(("went_on", "times"), [(False, 2), (True, 4)])
def test_who_loses_engines_is_suspected(went_on: bool, times: int) -> None:
    assert [False, True] == [lost(n, went_on=went_on).suspect for n in (times - 1, times)]


def test_nobody_is_given_up_for_what_happened_in_company() -> None:
    assert not lost(50).hopeless


@pytest.mark.parametrize(("went_on", "times"), [(False, 3), (True, 8)])
def test_what_loses_engines_that_it_has_for_itself_is_given_up(went_on: bool, times: int) -> None:
    found = [lost(n, alone=True, went_on=went_on).hopeless for n in (times - 1, times)]

    assert [False, True] == found


def test_a_token_clears_the_strikes_before_it() -> None:
    blame = lost(2, alone=True)
    blame.lost("e", dead=True, alone=True, went_on=True)

    assert (0, 3, False) == (blame.strikes, blame.deaths, blame.suspect)


@pytest.mark.parametrize(("dead", "deaths"), [(True, 2), (False, 3)])
def test_who_was_taken_for_dead_and_speaks_is_no_proof(dead: bool, deaths: int) -> None:
    """One that was silent, and may have been kept from speaking by the request, is."""
    blame = lost(3, alone=True, dead=dead)
    blame.acquit("e1")

    assert (deaths, deaths, deaths == 3) == (blame.deaths, blame.strikes, blame.hopeless)
