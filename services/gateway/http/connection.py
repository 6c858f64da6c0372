"""One TCP connection: what uvicorn leaves open is closed here.

uvicorn has no limit for the size of a request's head with httptools, nor for how long a request may take
to arrive, nor for how long a client may leave its answer unread; of several requests sent at once it
tells only the last one that the client has gone; and a request that would also speak another protocol, as
Java's own client does with HTTP/2, loses its body there.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import httptools
import uvicorn
from litestar.types import Message, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from millrace.errors import Code, Failure
from millrace.settings import Gateway
from services.gateway.http import fault
from services.gateway.http.joined import Joined
from services.gateway.visit import Visit

EXTENSION = "millrace.connection"
"""Under this name a request's ASGI scope has its connection."""

MAX_HEAD = 64 << 10
"""Twice what nginx lets through unless told otherwise."""

KERNEL_UNSENT = 128 << 10
"""What the system holds of an answer beyond what is on its way."""

PROGRESS = 64 << 10
"""So many bytes less unread are progress. A trickle is none: it could hold the memory for days."""

FRESH_S = 1.0
"""When the gateway stops, a connection this young whose request is still on its way gets an answer."""

LAST_S = 1.0
"""A body that comes too slowly is told so by whoever waits for it; so much later nobody does."""

TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\n"
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\n"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
BAD = b"HTTP/1.1 400 Bad Request\r\n"


class Connection(HttpToolsProtocol):
    def __init__(
        self, config: uvicorn.Config, state: ServerState, loop: asyncio.AbstractEventLoop, settings: Gateway
    ):
        super().__init__(config, state, {}, loop)
        self._settings = settings
        self._opened_at = self._arriving_since = time.monotonic()  # 0: all that came is whole
        self._in_head = True
        self._head_size = 0  # bytes read while in a head
        self._header_size = 0  # bytes of the headers that are whole
        self._lost = False
        self._watching: set[Callable[[], None]] = set()
        self._ahead: list[RequestResponseCycle] = []  # requests before the last one, still to be answered
        self.pushed = 0  # bytes, past the application's `send`
        self._stuck_at = 0.0
        self._stuck_size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=self._settings.slow_reader)
        # The system would keep megabytes for a client that does not read, and hide from us, until a
        # third of them is gone, that one which reads slowly does read.
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_UNSENT
        )
        if len(self.connections) > self._settings.connections:
            self._refuse(TOO_MANY, Failure(Code.UNAVAILABLE, "Too many connections are open."))

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._ahead:
            if not cycle.response_complete:
                cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)
        self._lost = True
        for leave in list(self._watching):
            leave()
        if all(cycle.response_complete for cycle in self._cycles()):
            self.cycle = self.scope = None  # type: ignore[assignment] # they hold it, too
            self._ahead = []

    def watch(self, leave: Callable[[], None]) -> Callable[[], None]:
        """Called when the client has gone, or had already; never from here. What comes back ends that."""
        self.flow.resume_reading()  # or nobody would hear of it
        if self._lost:
            return self.loop.call_soon(leave).cancel
        self._watching.add(leave)
        return lambda: self._watching.discard(leave)

    # What arrives

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_size += len(data)
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as offered:
                data = self._head_again() + data[offered.args[0] :]
            except httptools.HttpParserError:
                self.send_400_response("")
                return
        if self._in_head and self._head_size > MAX_HEAD and not self.transport.is_closing():
            self._refuse(TOO_LARGE, Failure(Code.INVALID_REQUEST, "The request's headers are too large."))

    def _head_again(self) -> bytes:
        """The head that offered another protocol, without the offer, for a parser of its own: this one has
        taken all that follows for that protocol's, and the connection for closed if the head says so."""
        line = b"%b %b HTTP/%b\r\n" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        kept = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"".join((line, *kept, b"\r\n"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_size = 0
        self._arriving_since = time.monotonic()
        self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_size += len(name) + len(value) + 4
        if self._header_size > MAX_HEAD:  # all of it may have come in one read
            raise ValueError("the headers are too large")  # the parser answers with send_400_response
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("there is no way on from here")
            return
        self._in_head = False
        if self.cycle is not None:
            self._ahead = [cycle for cycle in (*self._ahead, self.cycle) if not cycle.response_complete]
        super().on_headers_complete()
        self.cycle.transport = Joined(self.transport)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._arriving_since = 0.0
        self._in_head, self._head_size = True, 0

    @property
    def arrived(self) -> bool:
        """Whether every request that has begun to arrive is here as a whole."""
        return not self._arriving_since

    def send_400_response(self, msg: str) -> None:
        if self._header_size > MAX_HEAD:
            self._refuse(TOO_LARGE, Failure(Code.INVALID_REQUEST, "The request's headers are too large."))
        else:
            self._refuse(BAD, Failure(Code.INVALID_REQUEST, "This is not an HTTP/1.1 request."))

    def _refuse(self, status: bytes, failure: Failure) -> None:
        if any(c.response_started and not c.response_complete for c in self._cycles()):
            # An answer is half sent: anything written now would become a part of it.
            self.transport.abort()
            return
        body = fault.body(failure)
        headers = [
            *self.server_state.default_headers,
            *Visit().headers(),
            *fault.headers(failure),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(status + lines + b"\r\n" + body)
        self.transport.close()

    def _cycles(self) -> list[RequestResponseCycle]:
        return [*self._ahead, self.cycle] if self.cycle is not None else []

    # What leaves

    def resume_writing(self) -> None:
        self._stuck_size = 0
        super().resume_writing()

    @property
    def clear(self) -> bool:
        """Whether a part of an answer may be pushed now."""
        cycle: RequestResponseCycle | None = self.cycle
        if self._ahead:
            cycle = next((one for one in self._cycles() if not one.response_complete), None)
        return (
            cycle is not None
            and not cycle.response_complete
            and cycle.response_started
            and bool(cycle.chunked_encoding)
            and not cycle.disconnected
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def push(self, part: bytes) -> None:
        """Send a part of the answer that is under way, as the application's `send` would."""
        self.pushed += len(part)
        self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))

    def lasting(self, send: Send) -> Send:
        """For a client of HTTP/1.0, which knows no chunks: an answer without a length ends with its
        connection."""
        cycle, last = self.cycle, False

        async def sending(message: Message) -> None:
            nonlocal last
            if message["type"] == "http.response.start":
                last = not any(name.lower() == b"content-length" for name, _ in message["headers"])
                if last:  # uvicorn counts down from the length, and leaves an answer that has one as it is
                    cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
            elif message["type"] == "http.response.body" and last and not message["more_body"]:
                cycle.expected_content_length = len(message["body"])
            await send(message)

        return sending

    def hang_up(self) -> None:
        """Close once the answer being sent is complete."""
        for cycle in self._cycles():
            if not cycle.response_complete:
                cycle.keep_alive = False
                return

    # Time

    def shutdown(self) -> None:
        if self.cycle is None and time.monotonic() - self._opened_at < FRESH_S:
            return
        super().shutdown()

    def sweep(self, now: float) -> None:
        """Called every so often: ends a request that does not arrive, and an answer that nobody reads."""
        if self._arriving_since and not self.flow.read_paused:
            late = now - self._arriving_since - self._settings.slow_sender_s
            if late > 0 and self._in_head and self._head_size:
                self._refuse(TOO_SLOW, Failure(Code.REQUEST_TIMEOUT, "The request's head came too slowly."))
                return
            if late > (0 if self._in_head else LAST_S):
                self.transport.abort()
                return
        idle = all(cycle.response_complete for cycle in self._cycles())
        if idle and not self._arriving_since and self.timeout_keep_alive_task is None:
            # The rest of a body that nobody wanted any more has disarmed uvicorn's own timer.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        unread = self.transport.get_write_buffer_size()
        waiting = self.flow.write_paused or idle
        if not unread or not waiting:
            self._stuck_size = 0
        elif not self._stuck_size or self._stuck_size - unread >= min(PROGRESS, self._stuck_size // 4):
            self._stuck_at, self._stuck_size = now, unread
        elif now - self._stuck_at > self._settings.slow_reader_s:
            self.transport.abort()


def connection_of(scope: Any) -> Connection | None:
    """The connection a request came on; None under another server, as in a test."""
    found = (scope.get("extensions") or {}).get(EXTENSION)
    return found if isinstance(found, Connection) else None
