"""A port where one process alone tells its metrics: for Prometheus, where each process is a target."""

import asyncio
from collections.abc import Callable

from millrace.metrics import CONTENT_TYPE
from millrace.settings import SettingError

ASKING_S = 5.0

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"


async def serve(at: str, told: Callable[[], bytes]) -> asyncio.Server:
    """`at` is host:port. Anything that is asked is answered with the metrics."""
    host, colon, port = at.rpartition(":")
    if not colon or not port.isdigit():
        raise SettingError(f"metrics_at: {at!r} is not host:port")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ASKING_S):
                await reader.readuntil(b"\r\n\r\n")
                body = told()
                writer.write(HEAD % (CONTENT_TYPE, len(body)) + body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    try:
        return await asyncio.start_server(answer, host.strip("[]") or None, int(port))
    except OSError as error:
        raise SettingError(f"metrics_at: cannot listen on {at}: {error.strerror}") from None
