"""The client's end of a request: reading what it sends, and noticing that it has gone."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from litestar.types import Receive, Scope

from millrace.errors import Code, Failure
from services.gateway.http.connection import connection_of


async def read_body(
    headers: Iterable[tuple[bytes, bytes]], receive: Receive, limit: int, within_s: float | None
) -> bytes:
    """The whole body. Refused as soon as it is known to be too large, not when all of it has come, and when
    it has not come in time, however steadily it drips. Without `within_s` all of it is here."""
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            # A few compressed kilobytes may stand for gigabytes.
            raise Failure(Code.INVALID_REQUEST, "Content-Encoding is not supported: send the body plain.")
        if name == b"content-length" and int(value) > limit:
            raise _too_large(limit)
    try:
        async with asyncio.timeout(within_s):
            return await _read(receive, limit)
    except TimeoutError:
        said = f"The body did not arrive within {within_s:g} s."
        raise Failure(Code.REQUEST_TIMEOUT, said) from None


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Failure(Code.CANCELLED, "The client went away.")
        parts.append(message["body"])
        size += len(message["body"])
        if size > limit:
            raise _too_large(limit)
        if not message["more_body"]:
            return b"".join(parts)


def _too_large(limit: int) -> Failure:
    return Failure(Code.BODY_TOO_LARGE, f"The body is larger than {limit} bytes.")


async def attended(scope: Scope, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Does the work, unless its client leaves first: then it is cancelled at once."""
    task = asyncio.current_task()
    assert task is not None
    over = left = False

    def leave() -> None:
        nonlocal left
        if not over and not task.cancelling():
            left = True
            task.cancel()

    forget = connection.watch(leave) if (connection := connection_of(scope)) else _watch(receive, leave)
    try:
        await work
    except BaseException:
        if not left:
            raise
    finally:
        over = True
        forget()
    if left and task.uncancel():
        raise asyncio.CancelledError  # not by its client alone


def _watch(receive: Receive, leave: Callable[[], None]) -> Callable[[], object]:
    """Where there is no connection of ours, which would tell without a task."""
    gone = asyncio.ensure_future(_gone(receive))
    gone.add_done_callback(lambda _: leave())
    return gone.cancel


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
