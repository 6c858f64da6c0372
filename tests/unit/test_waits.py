"""How long a request waits, as its client is told."""

import pytest

from millrace import messages as m
from services.gateway.owner.entry import Entry
from services.gateway.owner.waits import MOST_RETRY_S, Rate, position


def queued(tenant: str, seq: int, model: str = "sim", engine: str = "") -> Entry:
    prompt = m.Prompt(f"gw-{seq}", 1, model, m.Text("x"), m.Sampling(1), tenant=tenant)
    return Entry(prompt, model, 0.0, 99.0, seq=seq, engine=engine)


def test_tenants_take_turns() -> None:
    """Who has queued a hundred is in nobody's way for more than one each turn."""
    crowd = [queued("a", seq) for seq in range(1, 101)]
    first, second = queued("b", 101), queued("b", 102)
    entries = [*crowd, first, second]

    assert (1, 1) == position(first, entries)
    assert (2, 3) == position(second, entries)
    assert (100, 99) == position(crowd[-1], entries)


def test_what_runs_and_other_models_are_in_nobodys_way() -> None:
    entry = queued("a", 3)
    entries = [queued("a", 1, engine="e1"), queued("a", 2, model="other"), entry, queued("a", 4)]

    assert (1, 0) == position(entry, entries)


@pytest.mark.parametrize("entry", [queued("a", 0), queued("a", 1, engine="e1")])
def test_who_does_not_wait_has_no_place(entry: Entry) -> None:
    """It is not stored yet, or an engine has it."""
    assert (0, 0) == position(entry, [entry, queued("b", 1)])


def test_nothing_is_foretold_before_anything_has_ended() -> None:
    """Who is refused then may come back in a second or so."""
    rate = Rate()
    rate.measured(0)

    assert -1 == rate.wait_ms(3)
    assert 0.75 <= rate.retry_after(1000) <= 1.25


def test_a_wait_follows_from_how_fast_requests_end() -> None:
    """Four in a second, for long: forty take ten seconds, and who is refused is told about that."""
    rate = Rate()
    for ended in range(0, 800, 4):
        rate.measured(ended)

    assert 10_000 == pytest.approx(rate.wait_ms(40), rel=0.01)
    assert 7.4 <= rate.retry_after(40) <= 12.6
    assert rate.retry_after(1_000_000) == MOST_RETRY_S
