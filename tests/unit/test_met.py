"""Who was met is remembered for a minute, and not for ever."""

from millrace.messages import Pong
from millrace.met import FORGET_S, Met
from services.gateway.owner.peers import LOST_S, Peers


def test_whoever_is_new_is_told_apart() -> None:
    """Once, as long as it goes on to speak; after a minute's silence it is new again."""
    met = Met()
    firsts = [met.first("a", at) for at in (0.0, 0.5, 59.0, 118.0, 118.0 + FORGET_S)]

    assert [True, False, False, False, True] == firsts


def test_the_silent_are_forgotten() -> None:
    """Of ten thousand that came one after another, those of the last minute are known."""
    met = Met()
    for number in range(10_000):
        met.first(f"gateway_{number}", float(number))

    assert int(FORGET_S) == len(met)


def test_a_gateway_forgets_those_that_it_asks_nothing_any_more() -> None:
    """Though they answered, and were never lost; whoever is still being asked is kept."""
    peers = Peers(pings=3)
    for number in range(10_000):
        peers.ask(f"engine_{number}", float(number))
        peers.answered(Pong(f"engine_{number}", 1, []), number + 0.1)
        peers.ask("steady", float(number))

    assert int(LOST_S) + 1 == len(peers)
    assert not peers.ask("steady", 10_000.0), "it is being asked already"
