"""Work that is done for a client, as long as the client is there."""

import asyncio
from typing import Any

import pytest

from services.gateway.http.attend import attended

SCOPE: Any = {}
"""A request under another server than ours."""


class Client:
    def __init__(self) -> None:
        self.leaves = asyncio.Event()

    async def receive(self) -> Any:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


class Work:
    def __init__(self, error: BaseException | None = None) -> None:
        self.goes_on = asyncio.Event()
        self.end = ""
        self._error = error

    async def run(self) -> None:
        try:
            await self.goes_on.wait()
            self.end = "done"
        except asyncio.CancelledError:
            await turns()
            self.end = "let go of"
            raise self._error or asyncio.CancelledError from None


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("error", [None, ValueError("while it was let go of")])
async def test_a_client_that_leaves_ends_the_work(error: BaseException | None) -> None:
    """And nothing else: who attended goes on, and is not taken to be cancelled."""
    client, work = Client(), Work(error)
    client.leaves.set()
    await attended(SCOPE, client.receive, work.run())
    await turns()
    task = asyncio.current_task()

    assert ("let go of", 0) == (work.end, task.cancelling() if task else None)


async def test_a_client_that_leaves_later_harms_nothing() -> None:
    """Even in the very moment in which the work is done."""
    client, work = Client(), Work()

    async def going_on() -> None:
        await attended(SCOPE, client.receive, work.run())
        await turns()

    task = asyncio.ensure_future(going_on())
    await turns()
    work.goes_on.set()
    client.leaves.set()
    await asyncio.wait((task,))

    assert ("done", False) == (work.end, task.cancelled())


async def test_who_is_cancelled_stays_cancelled() -> None:
    """Whether the client has left as well, or not."""
    for leaves in (False, True):
        client, work = Client(), Work()
        task = asyncio.ensure_future(attended(SCOPE, client.receive, work.run()))
        await turns()
        task.cancel()
        if leaves:
            client.leaves.set()
        await asyncio.wait((task,))

        assert ("let go of", True) == (work.end, task.cancelled())


async def test_what_the_work_fails_with_is_told() -> None:
    """It is its caller's."""

    async def failing() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await attended(SCOPE, Client().receive, failing())
