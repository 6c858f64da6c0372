"""Server-sent events, of whatever surface: how they are written, and how they go out as they come."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Send

from millrace.errors import Failure
from services.gateway.desk import Answer, Piece

WAITING = b": waiting\n\n"

KEEP_ALIVE_S = 5.0
"""Proxies and clients give up on a silent connection, the strictest known ones after ten seconds."""

Headers = list[tuple[bytes, bytes]]

HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the chunks otherwise
]

_encode = msgspec.json.encode


def quoted(text: str) -> bytes:
    """The text as JSON."""
    raw = _encode(text)
    return raw if text.isascii() else _unbroken(raw)


def escaped(value: Any) -> bytes:
    """The same of any value."""
    return _unbroken(_encode(value))


def _unbroken(raw: bytes) -> bytes:
    """Some clients cut lines where `str.splitlines` does: these characters are escaped."""
    return (
        raw.replace(b"\xc2\x85", b"\\u0085")
        .replace(b"\xe2\x80\xa8", b"\\u2028")
        .replace(b"\xe2\x80\xa9", b"\\u2029")
    )


def named_event(name: str, data: dict[str, Any]) -> bytes:
    """An event whose name stands before its data, and in it as its type."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), escaped({"type": name, **data}))


class Telling(Protocol):
    """How a surface tells an answer while it comes; free of I/O."""

    headers: Headers
    cached_tokens: int  # of the prompt; set before the first pieces are told

    def of(self, pieces: Iterable[Piece]) -> bytes: ...

    def waiting(self) -> bytes:
        """Something harmless, that keeps the connection from being taken for dead."""
        ...

    def failed(self, failure: Failure) -> bytes:
        """The end of an answer that had begun, never to be taken for a good one."""
        ...


class Direct(Protocol):
    """The client's connection, when it can be had: the way that saves waking a task for each token."""

    @property
    def clear(self) -> bool: ...

    def push(self, part: bytes) -> None: ...


class EventStream:
    """Sends an answer's events as they come, and a sign of life whenever nothing came for a while.

    Headers wait for the first of these, so that an answer that fails before it begins is an error with
    its own status. If the client does not read, `send` blocks and the pieces wait where they are.
    """

    def __init__(self, send: Send, direct: Direct | None = None, *, keep_alive_s: float = KEEP_ALIVE_S):
        self.started = False
        self._telling: Telling
        self._send = send
        self._direct = direct
        self._keep_alive_s = keep_alive_s
        self._sending = False
        self._sent_at = time.monotonic()

    async def run(self, answer: Answer, events: Telling) -> None:
        self._telling = events
        waiting = asyncio.ensure_future(self._keep_alive())
        answer.eager = self._eager
        try:
            while True:
                pieces = await answer.pieces()
                events.cached_tokens = answer.cached_tokens
                body = events.of(pieces)
                if answer.ended:
                    break
                if body:
                    await self._write(body)
        finally:
            answer.eager = None
            waiting.cancel()
            await asyncio.wait((waiting,))
        # In one write with the end of the body: the SDK waits for no more than 100 ms after [DONE].
        await self._write(body, more=False)

    def _eager(self, pieces: list[Piece]) -> bool:
        """Pieces from the middle of an answer go straight to a client that keeps up."""
        direct = self._direct
        if direct is None or not self.started or self._sending or pieces[-1].finish or not direct.clear:
            return False
        if body := self._telling.of(pieces):
            direct.push(body)
            self._sent_at = time.monotonic()
        return True

    async def fail(self, failure: Failure) -> None:
        """The end of a stream that had begun."""
        await self._write(self._telling.failed(failure), more=False)

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        self._sending = True
        if not self.started:
            self.started = True
            start: HTTPResponseStartEvent = {
                "type": "http.response.start",
                "status": 200,
                "headers": self._telling.headers,
            }
            await self._send(start)
        event: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": more}
        await self._send(event)
        self._sending = False
        self._sent_at = time.monotonic()

    async def _keep_alive(self) -> None:
        while True:
            quiet = time.monotonic() - self._sent_at
            if quiet < self._keep_alive_s:
                await asyncio.sleep(self._keep_alive_s - quiet)
            elif self._sending:  # the client is not reading what it has
                await asyncio.sleep(self._keep_alive_s)
            else:
                await self._write(self._telling.waiting())
