"""Which engine goes on with a text that another one began."""

import pytest

from millrace import messages as m
from services.gateway.owner.entry import Entry
from services.gateway.owner.ledger import Ledger
from tests.kit.owned import REQUEST, owned, said, verbs


def kin(*engines: tuple[str, str, int]) -> tuple[Ledger, Entry]:
    """A request that an engine of kind `a` gave back after two tokens; these engines are there: name,
    kind, load."""
    ledger, entry = owned()
    ledger.claim(m.Claim(REQUEST, "e1", "L1", 0, "a"), 0.0)
    ledger.delta(said(1, 0, 5, 6), 0.1)
    ledger.yielded(m.Yielded("e1", [entry.ref]), 1.0)
    for id, kind, load in engines:
        ledger.here(m.Here("engine", id, 1, "ready", load, 4, "sim", kind=kind), 1.0)
    return ledger, entry


def test_a_text_goes_on_at_an_engine_of_its_kind() -> None:
    """Another one is refused while that could take it, and the job is offered on."""
    ledger, _ = kin(("e2", "b", 0), ("e3", "a", 0))
    refused, effects = ledger.claim(m.Claim(REQUEST, "e2", "L2", 0, "b"), 1.1)
    granted, _ = ledger.claim(m.Claim(REQUEST, "e3", "L3", 0, "a"), 1.2)

    assert isinstance(refused, m.Gone) and ("L2", "-NAK") == verbs(effects)[-1]
    assert isinstance(granted, m.Granted) and not granted.strange
    assert (1, 0) == (ledger.counts["kept_for_its_kind"], ledger.counts["resumed_on_another_kind"])


@pytest.mark.parametrize(
    "engines",
    [(), (("e3", "b", 0),), (("e3", "a", 4),)],
    ids=["nobody", "none of its kind", "none that is free"],
)
def test_a_text_goes_on_at_another_kind_if_it_must(engines: tuple[tuple[str, str, int], ...]) -> None:
    """At once, and it is told."""
    ledger, _ = kin(*engines)
    granted, _ = ledger.claim(m.Claim(REQUEST, "e2", "L2", 0, "b"), 1.1)

    assert isinstance(granted, m.Granted) and granted.strange
    assert 1 == ledger.counts["resumed_on_another_kind"]


def test_the_right_kind_is_not_waited_for_for_long() -> None:
    """It may be there, and not come."""
    ledger, _ = kin(("e3", "a", 0))
    replies = [ledger.claim(m.Claim(REQUEST, "e2", "L2", 0, "b"), 1.1 + 0.05 * i)[0] for i in range(20)]
    waits = next(i for i, reply in enumerate(replies) if isinstance(reply, m.Granted))

    assert 0 < waits * 0.05 <= 0.5


def test_before_the_first_token_any_kind_will_do() -> None:
    """There is nothing yet that could go on differently."""
    ledger, entry = owned()
    ledger.here(m.Here("engine", "e3", 1, "ready", 0, 4, "sim", kind="a"), 0.0)
    ledger.claim(m.Claim(REQUEST, "e1", "L1", 0, "a"), 0.0)
    ledger.yielded(m.Yielded("e1", [entry.ref]), 0.1)
    granted, _ = ledger.claim(m.Claim(REQUEST, "e2", "L2", 0, "b"), 0.2)

    assert isinstance(granted, m.Granted) and not granted.strange
