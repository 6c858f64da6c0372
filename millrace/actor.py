"""What the inner services share: an actor has inboxes, says how loaded it is, and can drain."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, ClassVar

from millrace.bus import Bus
from millrace.messages import Here
from millrace.subjects import Role


class Actor(ABC):
    """One process's part. It hears subjects, sends typed messages, and shares nothing."""

    role: ClassVar[Role]

    def __init__(self, bus: Bus, id: str):
        self.bus = bus
        self.id = id
        self._tasks: set[asyncio.Task[Any]] = set()
        self.broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    @abstractmethod
    async def start(self) -> None:
        """Listen; returns when it can do its work."""

    @abstractmethod
    async def drain(self) -> None:
        """Take nothing new; finish or hand over what is in hand."""

    @abstractmethod
    def here(self, state: str, pid: int) -> Here:
        """What the others may know of it now."""

    async def reconnected(self) -> None:  # noqa: B027 - most have nothing to do
        """NATS is back; subscriptions are there again, what was on its way is not."""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that is held, and whose crash ends the process instead of passing unseen."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_result(error)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)
