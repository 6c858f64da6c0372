"""Which lanes the engines are told of: a bell may get lost, and an engine may come later."""

from collections.abc import Iterable

from millrace import messages as m
from millrace.keys import Tenant
from millrace.subjects import model_key
from services.gateway.owner.entry import Entry

IN_TURN = 4
"""Empty lanes named each time: what this costs does not grow with the tenants."""


def bells(entries: Iterable[Entry]) -> dict[str, m.Bell]:
    """For each model's engines, whose jobs wait. Those without a key are always asked for."""
    waiting: dict[str, dict[str, m.Waiting]] = {}
    for entry in entries:
        if entry.prompt.tenant:
            waiting.setdefault(entry.prompt.model, {})[entry.lane.consumer] = entry.waiting
    return {model: m.Bell(list(lanes.values())) for model, lanes in waiting.items()}


class Rounds:
    """Of the lanes that are empty as far as we know: they may hold jobs of a gateway that is gone."""

    def __init__(self) -> None:
        self._at = 0

    def next(self, tenants: list[Tenant]) -> m.Bell | None:
        """Some of them, others each time."""
        if not tenants:
            return None
        turn = [tenants[(self._at + n) % len(tenants)] for n in range(min(IN_TURN, len(tenants)))]
        self._at += IN_TURN
        return m.Bell([m.Waiting(model_key(t.name), t.priority, t.weight, t.share) for t in turn])
