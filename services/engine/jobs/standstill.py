"""A step that does not end, as on a GPU that hangs. Pure.

    after HELD_S     nothing is pulled any more
    after ENDED_S    on a GPU the process is to end: another begins with the device anew

Its owner takes away what an engine holds that makes no step for ten seconds, and blames the request for it a
little, since a request might be the reason. So it must not come here once more.
"""

HELD_S = 5.0
"""Half of what the owner waits: by then whatever was asked for has come."""

ENDED_S = 30.0
"""Three times what the owner waits. A processor does end: it may have weights to read from a slow disk, and
another process would have them to read again."""

LOOK_S = 1.0
"""A look counts for no more: who was stopped, or got no processor, did not see that the step does not end."""


class Standstill:
    def __init__(self, *, ends: bool) -> None:
        self._ends = ends
        self.seconds = 0.0  # that the step which is under way has taken
        self._step: int | None = None
        self._at = 0.0

    @property
    def held(self) -> bool:
        return self.seconds >= HELD_S

    @property
    def ended(self) -> bool:
        return self._ends and self.seconds >= ENDED_S

    def look(self, step: int | None, now: float) -> bool:
        """`step`: the number of the one that is under way. Whether `held` changed."""
        was = self.held
        same = step is not None and step == self._step
        self.seconds = self.seconds + min(now - self._at, LOOK_S) if same else 0.0
        self._step, self._at = step, now
        return self.held != was
