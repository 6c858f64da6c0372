"""Turns go round, and nobody is remembered for ever."""

from services.engine.steps.rota import Rota


def test_the_next_turn_is_of_whoever_had_none_for_longest() -> None:
    rota = Rota(most=2)
    for name in ("a", "b", "a"):
        rota.had(name)
    assert ["c", "b", "a"] == sorted(("a", "b", "c"), key=rota.last)

    rota.had("c")
    assert 0 == rota.last("b") < rota.last("a") < rota.last("c")
