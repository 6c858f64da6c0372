"""Which engines compute the same bits: a text is best continued by one of the kind that began it.

Another kind of processor rounds otherwise, so its engine may go on differently than the one that was lost
would have. Such an engine is kept waiting for a moment, if one of the right kind could take the job instead.
"""

from dataclasses import dataclass

from millrace import messages as m
from millrace.subjects import Role
from services.gateway.owner.neighbours import SEEN_S

WAIT_S = 0.4
"""For a job to come to the right engine: it is offered around every few milliseconds, and a client that waits
for its next token hardly notices."""


@dataclass(frozen=True, slots=True)
class Engine:
    kind: str
    model: str
    free: bool
    seen_at: float


class Kin:
    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def heard(self, here: m.Here, now: float) -> None:
        if here.role != Role.ENGINE:
            return
        if here.id not in self._engines:  # one takes another's place: of that one nobody may have told us
            self._engines = {id: e for id, e in self._engines.items() if now - e.seen_at < SEEN_S}
        if here.state == "ready" and here.kind:
            self._engines[here.id] = Engine(here.kind, here.model, here.load < here.room, now)
        else:
            self._engines.pop(here.id, None)

    def gone(self, id: str) -> None:
        self._engines.pop(id, None)

    def heard_since(self, id: str, when: float) -> bool:
        return id in self._engines and self._engines[id].seen_at >= when

    def there(self, kind: str, model: str, now: float) -> bool:
        """Whether an engine of this kind could take a job."""
        return any(
            engine.kind == kind and engine.model == model and engine.free and now - engine.seen_at < SEEN_S
            for engine in self._engines.values()
        )
