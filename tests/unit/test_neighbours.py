"""Who is there, as a gateway knows it from what they say."""

from millrace.messages import Here
from millrace.subjects import Role
from services.gateway.owner.neighbours import FORGET_S, SEEN_S, Neighbours

INNER = (Role.TOKENIZER, Role.ENGINE, Role.DETOKENIZER)


def here(role: Role, id: str, state: str = "ready") -> Here:
    return Here(role, id, 1, state, 0)


def test_who_is_not_ready_is_missing() -> None:
    """A role is there with the first of it that is ready, and as long as it says so."""
    known = Neighbours("gateway_a")
    known.heard(here(Role.TOKENIZER, "t"), 0.0)
    known.heard(here(Role.ENGINE, "e", "starting"), 0.0)
    at_first = known.missing(INNER, 0.1)
    known.heard(here(Role.ENGINE, "f"), SEEN_S)

    assert [Role.ENGINE, Role.DETOKENIZER] == at_first
    assert [Role.TOKENIZER, Role.DETOKENIZER] == known.missing(INNER, SEEN_S + 0.1)


def test_it_is_no_neighbour_of_its_own_but_one_of_the_gateways() -> None:
    known = Neighbours("gateway_a")
    known.heard(here(Role.GATEWAY, "gateway_a"), 0.0)
    alone = known.fellows(), known.gateways(0.1), known.there(0.1)
    other = here(Role.GATEWAY, "gateway_b")
    known.heard(other, 0.0)

    assert ([], 1, []) == alone
    assert (["gateway_b"], 2, [other]) == (known.fellows(), known.gateways(0.1), known.there(0.1))
    assert (0, []) == (known.gateways(SEEN_S + 0.1), known.there(SEEN_S + 0.1))


def test_the_silent_are_forgotten_in_the_end() -> None:
    """Their last word is kept for a while, for whoever asks when that was."""
    known = Neighbours("gateway_a")
    known.heard(here(Role.GATEWAY, "gateway_b"), 0.0)
    known.tick(FORGET_S)
    kept = known.fellows(), known.heard_since("gateway_b", -1.0), known.heard_since("gateway_b", 0.0)
    known.tick(FORGET_S + 0.1)

    assert (["gateway_b"], True, False) == kept
    assert ([], False) == (known.fellows(), known.heard_since("gateway_b", -1.0))
