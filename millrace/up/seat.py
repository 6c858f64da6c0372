"""One place in a running service, whoever has it now: its process, its state, its deaths."""

import asyncio

from millrace import messages
from millrace.up.child import Child
from millrace.up.control import Row

NATS = "nats"
SILENT_S = 3.0
"""`Here` comes every half second."""


def backoff(deaths: int) -> float:
    """The pause before the next start, after so many deaths in a row: 0, 0.1, 0.2, 0.4 ... 10 s."""
    return 0.0 if deaths < 2 else min(10.0, 0.1 * 2.0 ** min(deaths - 2, 10))


class Seat:
    """One place in the service, and the process that has it now."""

    def __init__(self, role: str, number: int, tries: int | None, restarts: int):
        self.role = role
        self.number = number
        self.tries = tries  # deaths until it is given up, if it was never ready; None: no limit
        self.restarts = restarts  # deaths that nobody asked for
        self.first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.leaving = asyncio.Event()
        self.gpu: int | None = None  # the device its engine was given
        self.replacing = False  # its process was asked to end, to be started again
        self.task: asyncio.Task[None]
        # of the process that has it now
        self.child: Child | None = None
        self.id = NATS if role == NATS else ""
        self.state = "starting"
        self.ready = asyncio.Event()
        self.ready_at = 0.0
        self.heard = 0.0
        self.mute = False  # nats-server was asked, and did not answer
        self.here: messages.Here | None = None

    @property
    def name(self) -> str:
        return self.role if self.id in (self.role, "") else f"{self.role} {self.id}"

    def begin(self, id: str, child: Child) -> None:
        self.id, self.child, self.state, self.here, self.mute = id, child, "starting", None, False

    def end(self) -> None:
        self.ready.clear()
        self.state, self.here, self.mute = "away", None, False

    def row(self, now: float | None) -> Row:
        """`now` is left out while nobody can be heard."""
        if self.role == NATS:
            silent = self.mute
        else:
            silent = now is not None and self.state == "ready" and now - self.heard > SILENT_S
        here = self.here
        return Row(
            self.role,
            self.child.pid if self.child and self.child.alive else 0,
            self.id,
            "silent" if silent else self.state,
            here.load if here else 0,
            here.room if here else 0,
            self.restarts,
            here.model if here else "",
            here.pressure if here else "",
        )
