"""The only file that imports nats: connect, publish, request, listen.

nats-py's defaults suit long-lived clients of a distant server. Here a server that dies is back within a
second and a process that is cut off must know it: reconnecting is quick and endless, pings are frequent.
"""

import asyncio
import contextlib
import inspect
import logging
import re
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar
from urllib.parse import ParseResult, urlsplit

import msgspec
import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from millrace import messages, newer, subjects
from millrace.errors import Code, Failure
from millrace.messages import Message, encode
from millrace.subjects import Role
from millrace.tap import Take, Tap
from millrace.telemetry import Context

log = logging.getLogger("millrace.bus")

CLOSE_S = 1.0
"""For a client that never was connected: nats-py may wait for ever to close one."""

FLUSH_S = 1.0
"""Two pings take a millisecond; whoever waits for them longer goes on without."""

PONG_S = 60
"""nats-py takes a pong that nobody waits for any more for an error of the connection: who gives up only looks
away."""

QUIET_S = 5.0
"""Whoever waits so long for a server has more often its address wrong than its start to wait for."""

PRINTABLE = re.compile(r"[\x21-\x7e]+")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
NO_RESPONDERS = "503"

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class NoResponder(Exception):
    """Nobody listens there: the process is gone. Known at once."""


ENDS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends a task or the process. Anything else harms one message only: a library that is written in Rust
panics with a kind of its own, which is no Exception."""


class NoAnswer(Exception):
    """Nothing came back in time: paused, hung, cut off, or NATS is away."""


@dataclass(frozen=True)
class Inbox(Generic[T]):
    """One subject in: what may arrive there, and who takes it.

    A handler that is a plain function is called as soon as the message is read: nothing waits, and nothing
    can be dropped for it. One that is a coroutine function takes messages one after another with credit 1,
    without a task each; with more, that many may be under way at once. What it returns answers a request.
    """

    subject: str
    accepts: Any  # a Message type or a union of them
    handle: Callable[[T, Context], Awaitable[Message | None] | Message | None]
    queue: str = ""
    credit: int = 1


Found = tuple[bytes, Mapping[str, str]]
"""An answer: its payload and its headers."""


class _Link(TcpTransport):
    """nats-py's connection, with taps. One that goes over to TLS has none: nats-py then serves all."""

    def __init__(self, taps: dict[int, Take]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._taps = taps
        self._held: list[bytes] = []
        self._holding = 0

    def __bool__(self) -> bool:
        return True  # or nats-py would make its own

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        loop = asyncio.get_running_loop()
        reader = Tap(self._taps, limit=buffer_size)
        protocol = asyncio.StreamReaderProtocol(reader)
        assert uri.hostname and uri.port
        connecting = loop.create_connection(lambda: protocol, uri.hostname, uri.port)
        transport, _ = await asyncio.wait_for(connecting, connect_timeout)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    def say(self, command: bytes) -> None:
        if self._holding:
            self._held.append(command)
        else:
            assert self._io_writer is not None
            self._io_writer.write(command)

    def drop(self) -> None:
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    def __enter__(self) -> None:
        self._holding += 1

    def __exit__(self, *_: object) -> None:
        self._holding -= 1
        if self._held and not self._holding:
            held, self._held = self._held, []
            with contextlib.suppress(RuntimeError, OSError):  # closed, and nats-py does not know it yet
                self.say(b"".join(held))


class Bus:
    def __init__(self, client: Client):
        self._client = client
        self._taps: dict[int, Take] = {}
        self._link = client._transport = _Link(self._taps)
        self._subs: list[Subscription] = []
        self._answers = ""  # below it, each question of ours has a subject for its answer
        self._asked: dict[str, asyncio.Future[Found | None]] = {}
        self._questions = 0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushing: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()  # what went wrong so far; `Here` carries it
        self.on_up: Callable[[], Awaitable[None]] | None = None
        self.together: AbstractContextManager[None] = self._link
        """What is published inside goes out in one write, in order."""

    # -- connection

    @classmethod
    async def connect(cls, url: str, role: Role, name: str, tls: ssl.SSLContext | None = None) -> "Bus":
        """Connect, however long the server takes to appear. Wrong credentials fail at once."""
        client = Client()
        bus = cls(client)
        parts = urlsplit(url)
        servers = [f"{parts.scheme}://{host}" for host in parts.netloc.rpartition("@")[2].split(",")]
        refused = asyncio.get_running_loop().create_future()

        async def on_error(error: Exception) -> None:
            if isinstance(error, nats.errors.SlowConsumerError):
                bus.counts["dropped"] += 1
                log.warning("a subscription fell behind and dropped a message: %s", error)
            elif "uthorization" in str(error):
                if not refused.done():
                    refused.set_result(error)
            elif "ermissions" in str(error):
                bus.counts["forbidden"] += 1
                log.error("NATS refused: %s", error)
            else:
                log.debug("nats: %r", error)

        async def on_up() -> None:
            log.info("connected to NATS again")
            bus.counts["reconnects"] += 1
            if bus.on_up is not None:
                await bus.on_up()

        async def on_down() -> None:
            if not bus._closing:
                log.warning("NATS is away")
            for inbox in bus._asked:  # an answer to any of these is lost
                bus._settle(inbox, None)

        connecting = asyncio.ensure_future(
            client.connect(
                servers,
                user=parts.username,
                password=parts.password,
                name=name,
                inbox_prefix=subjects.inbox_prefix(role).encode(),
                error_cb=on_error,
                reconnected_cb=on_up,
                disconnected_cb=on_down,
                tls=tls,
                allow_reconnect=True,
                connect_timeout=2,
                reconnect_time_wait=0.05,  # type: ignore[arg-type]  # it only sleeps for it
                max_reconnect_attempts=-1,
                ping_interval=1,
                max_outstanding_pings=3,
                # Nothing is kept for a server that is away: a frame would be late, a job would be a ghost.
                pending_size=0,
            )
        )
        try:
            ends = {connecting, refused}
            if not (await asyncio.wait(ends, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED))[0]:
                log.warning("no NATS answers at %s yet: it is waited for", ", ".join(servers))
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            bus._closing = True
            connecting.cancel()
            # What nats-py fails with when it is stopped amid its first words is nobody's to hear of.
            ended = asyncio.gather(connecting, client.close(), return_exceptions=True)
            await asyncio.wait({ended}, timeout=CLOSE_S)
            ended.cancel()
            bus._link.drop()
            raise
        if refused.done() and not client.is_connected:
            connecting.cancel()
            raise PermissionError(f"NATS refused the credentials of {role} at {', '.join(servers)}")
        await connecting
        try:
            bus._answers = bus.inbox()
            await bus._tap(f"{bus._answers}.*", bus._answered)
        except asyncio.CancelledError:
            await bus.close()
            raise
        return bus

    @property
    def up(self) -> bool:
        return self._client.is_connected

    async def close(self) -> None:
        """Take nothing more, finish what was taken, send what was said."""
        self._closing = True
        for sub in self._subs:
            self._taps.pop(sub._id, None)
        for sub in self._subs:
            try:
                await sub.unsubscribe()
            except nats.errors.Error:
                break  # the connection is away: there is nothing to unsubscribe from
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)
        await self.flush()
        await self._client.close()
        for task in self._flushing:
            task.cancel()

    async def flush(self) -> None:
        """All that was sent has reached the server, if it is there."""
        flushing = asyncio.create_task(self._flush())
        self._flushing.add(flushing)
        flushing.add_done_callback(self._flushing.discard)
        await asyncio.wait({flushing}, timeout=FLUSH_S)

    async def _flush(self) -> None:
        """nats-py lets a flush's ping overtake what it still holds back, so it takes two."""
        try:
            for _ in range(2):
                await self._client.flush(PONG_S)
        except (nats.errors.Error, TimeoutError, OSError):
            log.debug("NATS is away")

    # -- core: publish, request, listen

    def publish(self, subject: str, message: Message) -> bool:
        """False if NATS is away: the message is not kept."""
        return self.send(subject, encode(message))

    def send(
        self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> bool:
        head = _head(headers) if headers else b""
        size = len(head) + len(payload)
        if not self._client.is_connected or size > self._client.max_payload:
            return False
        to = _written(subject)
        if not to:
            return False
        if reply:
            to = b"%b %b" % (to, reply.encode())
        try:
            if head:
                self._link.say(b"HPUB %b %d %d\r\n%b%b\r\n" % (to, len(head), size, head, payload))
            else:
                self._link.say(b"PUB %b %d\r\n%b\r\n" % (to, size, payload))
        except (RuntimeError, OSError):  # closed, and nats-py does not know it yet
            return False
        return True

    async def request(
        self, subject: str, message: Message, answer: Any, timeout: float, context: Context | None = None
    ) -> Any:
        headers = context.headers() if context else None
        data = await self.ask(subject, encode(message), timeout, headers)
        try:
            return _decoder(answer).decode(data)
        except messages.MISREAD as error:
            self.misread(subject, data, error)
            raise NoAnswer(f"{subject} answered something else: {error}") from None

    async def ask(
        self, subject: str, data: bytes, timeout: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        self._questions += 1
        inbox = f"{self._answers}.{self._questions}"
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Found | None] = loop.create_future()
        self._asked[inbox] = answer
        late = loop.call_later(timeout, self._settle, inbox, None)
        try:
            if not self.send(subject, data, inbox, headers):
                raise NoAnswer(f"{subject}: NATS is away, or does not take it")
            found = await answer
        finally:
            late.cancel()
            del self._asked[inbox]
        if found is None:
            raise NoAnswer(f"{subject}: nothing within {timeout:g} s, or NATS went away")
        reply, about = found
        if about.get("Status") == NO_RESPONDERS:
            raise NoResponder(subject)
        return reply

    def _answered(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str]) -> None:
        self._settle(subject, (payload, headers))

    def _settle(self, inbox: str, found: Found | None) -> None:
        answer = self._asked.get(inbox)
        if answer is not None and not answer.done():
            answer.set_result(found)

    async def listen(self, inbox: Inbox[Any]) -> None:
        decoder = _decoder(inbox.accepts)

        def take(subject: str, payload: bytes, reply: str, headers: Mapping[str, str]) -> None:
            answer: Any
            with self.together:
                try:
                    answer = inbox.handle(decoder.decode(payload), Context.of(headers))
                except ENDS:
                    raise
                except BaseException as error:
                    answer = self._refusal(inbox.subject, payload, error)
                if answer is not None and reply:
                    self.send(reply, encode(answer))

        if not inspect.iscoroutinefunction(inbox.handle):
            await self.hear(inbox.subject, take, inbox.queue)
            return
        credit = asyncio.Semaphore(inbox.credit)

        async def handle(msg: Msg) -> None:
            answer: Any
            try:
                work: Any = inbox.handle(decoder.decode(msg.data), Context.of(msg.headers))
                answer = await work
            except ENDS:
                raise
            except BaseException as error:
                answer = self._refusal(inbox.subject, msg.data, error)
            if answer is not None and msg.reply:
                self.send(msg.reply, encode(answer))

        async def spend(msg: Msg) -> None:
            try:
                await handle(msg)
            finally:
                credit.release()

        async def spawn(msg: Msg) -> None:
            await credit.acquire()
            task = asyncio.create_task(spend(msg))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        taker = handle if inbox.credit == 1 else spawn
        self._subs.append(await self._subscribe(inbox.subject, inbox.queue, taker))

    async def hear(self, subject: str, take: Take, queue: str = "") -> Callable[[], Awaitable[None]]:
        """Every message there is taken as soon as it is read. What comes back ends that."""

        sub = await self._tap(subject, take, queue)
        self._subs.append(sub)

        async def end() -> None:
            self._taps.pop(sub._id, None)
            self._subs.remove(sub)
            with contextlib.suppress(nats.errors.Error):  # the connection is away
                await sub.unsubscribe()

        return end

    async def _tap(self, subject: str, take: Take, queue: str = "") -> Subscription:
        async def served(msg: Msg) -> None:  # by nats-py, where there are no taps
            take(msg.subject, msg.data, msg.reply, msg.headers or {})

        sub = await self._subscribe(subject, queue, served)
        self._taps[sub._id] = take
        return sub

    async def _subscribe(
        self, subject: str, queue: str, served: Callable[[Msg], Awaitable[None]]
    ) -> Subscription:
        sub = await self._client.subscribe(subject, queue=queue, cb=served)
        # Said at once as well, past what nats-py holds back: nothing that is published from now on overtakes
        # it, a question least of all, which would be answered to nobody. To the server both are one.
        words = " ".join(filter(None, ("SUB", subject, queue, str(sub._id))))
        with contextlib.suppress(RuntimeError, OSError):  # gone again: nats-py says it to the next one
            self._link.say(b"%b\r\n" % words.encode())
        return sub

    def inbox(self) -> str:
        """A subject of its own, for answers."""
        return self._client.new_inbox()

    def misread(self, subject: str, payload: bytes, error: Exception) -> bool:
        """Count and tell what could not be read; whether it is of a newer version."""
        if kind := newer.kind(payload):
            self.counts["unknown"] += 1
            level = logging.WARNING if self.counts["unknown"] == 1 else logging.DEBUG
            log.log(level, "a %r on %s is of a newer version, and not known here", kind, subject)
            return True
        self.counts["poisoned"] += 1
        log.error("a message on %s is not one of ours: %s", subject, error)
        return False

    def _refusal(self, subject: str, payload: bytes, error: BaseException) -> messages.Refused:
        match error:
            case msgspec.MsgspecError() | UnicodeDecodeError():
                self.misread(subject, payload, error)
                return messages.Refused("", Code.INVALID_REQUEST, "not a message of this subject")
            case Failure():
                return messages.Refused("", error.code, error.message, error.param)
        self.counts["failed"] += 1
        log.error("a message on %s could not be handled", subject, exc_info=error)
        return messages.Refused("", Code.INTERNAL, "the request could not be handled")


@lru_cache(maxsize=1024)  # most are said again and again
def _written(subject: str) -> bytes:
    """Nothing, if it is none: a lease is what a message said it is."""
    return subject.encode() if PRINTABLE.fullmatch(subject) else b""


def _head(headers: Mapping[str, str]) -> bytes:
    lines = [f"{name}: {CONTROL.sub(' ', value)}\r\n" for name, value in headers.items()]
    return b"NATS/1.0\r\n%b\r\n" % "".join(lines).encode()


_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def _decoder(accepts: Any) -> msgspec.msgpack.Decoder[Any]:
    if accepts not in _decoders:
        _decoders[accepts] = msgspec.msgpack.Decoder(accepts)
    return _decoders[accepts]
