"""Which detokenizer is given a text."""

from services.gateway.owner.detokenizers import Detokenizers
from services.gateway.owner.neighbours import SEEN_S


def there(*ids: str, now: float = 0.0) -> Detokenizers:
    known = Detokenizers()
    for id in ids:
        known.ready(id, now)
    return known


def test_the_one_with_the_fewest_texts() -> None:
    """Of several that are as idle always the same; and not the one that is to be changed."""
    known = there("d2", "d1", "d3")

    assert "d3" == known.pick(["d1", "d2", "d1", "d2", ""], 0.1)
    assert "d1" == known.pick(["", ""], 0.1)
    assert "d2" == known.pick([], 0.1, but="d1")


def test_who_is_silent_or_gone_is_given_nothing() -> None:
    """However idle it is. Where nobody is left, nobody is named."""
    known = there("d1", "d2")
    known.ready("d2", SEEN_S)

    assert "d2" == known.pick(["d2", "d2"], SEEN_S)
    assert (True, False) == (known.gone("d2"), known.gone("d2"))
    assert "" == known.pick([], SEEN_S)


def test_a_new_one_is_noticed_once() -> None:
    """And again after it was gone."""
    known = Detokenizers()
    came = [known.ready("d1", 0.0), known.ready("d1", 0.5)]
    known.gone("d1")

    assert [True, False, True] == [*came, known.ready("d1", 1.0)]


def test_who_died_before_nats_did_gets_nothing_when_it_is_back() -> None:
    """All were silent meanwhile. Those that spoke until then are there again; one that had nothing in hand
    when it died was missed by nobody."""
    known = there("d1")
    for id in ("d2", "d3"):
        known.ready(id, 10.0)
    known.reconnected(20.0)

    assert "d3" == known.pick(["d2"], 20.1)
    assert "d2" == known.pick(["d3"], 20.1)
