"""Who else is there, by what each process says of itself twice a second."""

from collections.abc import Collection

from millrace.messages import Here
from millrace.subjects import Role

SEEN_S = 2.0
"""Whose last sign of life is younger than this is there: each gives two a second."""

FORGET_S = 60.0


class Neighbours:
    def __init__(self, id: str):
        """`id`: whose neighbours they are; it hears itself too."""
        self._id = id
        self._seen: dict[str, tuple[Here, float]] = {}

    def heard(self, here: Here, now: float) -> None:
        self._seen[here.id] = here, now

    def tick(self, now: float) -> None:
        self._seen = {id: seen for id, seen in self._seen.items() if now - seen[1] <= FORGET_S}

    def there(self, now: float) -> list[Here]:
        """The others, as they were a moment ago."""
        return [here for here in self._recent(now) if here.id != self._id]

    def missing(self, roles: Collection[Role], now: float) -> list[Role]:
        """Of which nobody is ready."""
        ready = {here.role for here in self._recent(now) if here.state == "ready"}
        return [role for role in roles if role not in ready]

    def gateways(self, now: float) -> int:
        """This one among them, once it has heard itself."""
        return sum(here.role == Role.GATEWAY for here in self._recent(now))

    def fellows(self) -> list[str]:
        """The other gateways that were ever met, as far as is remembered."""
        return [id for id, (here, _) in self._seen.items() if here.role == Role.GATEWAY and id != self._id]

    def heard_since(self, id: str, since: float) -> bool:
        seen = self._seen.get(id)
        return seen is not None and seen[1] > since

    def _recent(self, now: float) -> list[Here]:
        return [here for here, at in self._seen.values() if now - at < SEEN_S]
