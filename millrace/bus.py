"""The only file that imports nats: connect, publish, request, listen, pull, store.

nats-py's defaults suit long-lived clients of a distant server. Here a server that dies is back within a
second and a process that is cut off must know it: reconnecting is quick and endless, pings are frequent.
"""

import asyncio
import inspect
import json
import logging
import re
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import ParseResult, urlsplit

import msgspec
import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from millrace import messages, subjects
from millrace.errors import Code, Failure
from millrace.messages import Message, encode
from millrace.subjects import Role
from millrace.tap import Take, Tap
from millrace.telemetry import Context

log = logging.getLogger("millrace.bus")

CLOSE_S = 1.0
"""For a client that never was connected: nats-py may wait for ever to close one."""

PRINTABLE = re.compile(r"[\x21-\x7e]+")

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class NoResponder(Exception):
    """Nobody listens there: the process is gone. Known at once."""


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


@dataclass(frozen=True)
class Delivery:
    """A job as JetStream handed it over."""

    job: messages.Job
    lease: str
    delivery: int
    context: Context
    lane: str = ""  # the consumer it came from
    more: bool = False  # there were others behind it


class _Link(TcpTransport):
    """nats-py's connection, with taps. One that goes over to TLS has none: nats-py then serves all."""

    def __init__(self, taps: dict[int, Take]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._taps = taps

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
        assert self._io_writer is not None
        self._io_writer.write(command)


class Bus:
    def __init__(self, client: Client, role: Role):
        self._client = client
        self._taps: dict[int, Take] = {}
        self._link = client._transport = _Link(self._taps)
        self._role = role
        self._subs: list[Subscription] = []
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()  # what went wrong so far; `Here` carries it
        self.on_up: Callable[[], Awaitable[None]] | None = None

    # -- connection

    @classmethod
    async def connect(cls, url: str, role: Role, name: str, tls: ssl.SSLContext | None = None) -> "Bus":
        """Connect, however long the server takes to appear. Wrong credentials fail at once."""
        client = Client()
        bus = cls(client, role)
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
            await asyncio.wait({connecting, refused}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            connecting.cancel()
            closing = asyncio.ensure_future(client.close())
            await asyncio.wait({connecting, closing}, timeout=CLOSE_S)
            closing.cancel()
            raise
        if refused.done() and not client.is_connected:
            connecting.cancel()
            raise PermissionError(f"NATS refused the credentials of {role} at {', '.join(servers)}")
        await connecting
        return bus

    @property
    def up(self) -> bool:
        return self._client.is_connected

    async def close(self) -> None:
        """Take nothing more, finish what was taken, send what was said."""
        self._closing = True
        self._taps.clear()
        for sub in self._subs:
            try:
                await sub.unsubscribe()
            except nats.errors.Error:
                break  # the connection is away: there is nothing to unsubscribe from
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)
        await self._said()
        await self._client.close()

    async def _said(self) -> None:
        """All that was sent has reached the server, if it is there. nats-py lets a flush's ping overtake
        what it still holds back, so it takes two."""
        try:
            for _ in range(2):
                await self._client.flush(1)
        except (nats.errors.Error, TimeoutError, OSError):
            log.debug("NATS is away")

    # -- core: publish, request, listen

    def publish(self, subject: str, message: Message) -> bool:
        """False if NATS is away: the message is not kept. All that is published in one turn of the event
        loop goes out in one write, in order."""
        return self._send(subject, encode(message))

    def _send(self, subject: str, payload: bytes) -> bool:
        if not self._client.is_connected or len(payload) > self._client.max_payload:
            return False
        if not PRINTABLE.fullmatch(subject):  # a lease is what a message said it is
            return False
        try:
            self._link.say(b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload))
        except (RuntimeError, OSError):  # closed, and nats-py does not know it yet
            return False
        return True

    async def request(
        self, subject: str, message: Message, answer: Any, timeout: float, context: Context | None = None
    ) -> Any:
        headers = context.headers() if context else None
        data = await self._ask(subject, encode(message), timeout, headers)
        try:
            return _decoder(answer).decode(data)
        except msgspec.MsgspecError as error:
            self.counts["poisoned"] += 1
            raise NoAnswer(f"{subject} answered something else: {error}") from None

    async def _ask(
        self, subject: str, data: bytes, timeout: float, headers: dict[str, str] | None = None
    ) -> bytes:
        if not self._client.is_connected:
            raise NoAnswer("NATS is away")
        try:
            reply = await self._client.request(subject, data, timeout=timeout, headers=headers)
        except nats.errors.NoRespondersError:
            raise NoResponder(subject) from None
        except (nats.errors.Error, OSError, TimeoutError, asyncio.CancelledError) as error:
            # nats-py cancels what is under way when the connection goes: that is no cancel of ours
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            raise NoAnswer(f"{subject}: {error!r}") from None
        return reply.data

    async def listen(self, inbox: Inbox[Any]) -> None:
        decoder = _decoder(inbox.accepts)
        credit = asyncio.Semaphore(inbox.credit)
        plain = not inspect.iscoroutinefunction(inbox.handle)

        def take(payload: bytes, reply: str, headers: bytes) -> None:
            answer: Any
            try:
                answer = inbox.handle(decoder.decode(payload), Context.of(_headers(headers)))
            except Exception as error:
                answer = self._refusal(inbox.subject, error)
            if answer is not None and reply:
                self._send(reply, encode(answer))

        async def handle(msg: Msg) -> None:
            answer: Any
            try:
                answer = inbox.handle(decoder.decode(msg.data), Context.of(msg.headers))
                if not plain:
                    answer = await answer
            except Exception as error:
                answer = self._refusal(inbox.subject, error)
            if answer is not None and msg.reply:
                self._send(msg.reply, encode(answer))

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
        sub = await self._client.subscribe(inbox.subject, queue=inbox.queue, cb=taker)
        self._subs.append(sub)
        if plain:
            self._taps[sub._id] = take

    def _refusal(self, subject: str, error: Exception) -> messages.Refused:
        match error:
            case msgspec.MsgspecError():
                self.counts["poisoned"] += 1
                log.error("a message on %s is not one of ours: %s", subject, error)
                return messages.Refused("", Code.INVALID_REQUEST, "not a message of this subject")
            case Failure():
                return messages.Refused("", error.code, error.message, error.param)
        self.counts["failed"] += 1
        log.error("a message on %s could not be handled", subject, exc_info=error)
        return messages.Refused("", Code.INTERNAL, "the request could not be handled")

    # -- JetStream: what is stored

    async def store(
        self, subject: str, message: Message, msg_id: str, timeout: float, context: Context
    ) -> int:
        """Store it once; the sequence number. Raises Failure as the queue refuses."""
        headers = {**context.headers(), "Nats-Msg-Id": msg_id}
        try:
            ack = json.loads(await self._ask(subject, encode(message), timeout, headers))
        except NoResponder:
            raise Failure(Code.UNAVAILABLE, "the job queue does not exist yet") from None
        except NoAnswer:
            # A disk that is really full answers nothing at all.
            raise Failure(Code.UNAVAILABLE, "the job queue does not answer") from None
        if "error" not in ack:
            return int(ack["seq"])
        text = ack["error"].get("description", "")
        # 10077 is generic: only these texts mean that the queue is full.
        if ack["error"].get("err_code") == 10077 and text.startswith("maximum "):
            if text == "message size exceeds maximum allowed":
                raise Failure(Code.BODY_TOO_LARGE, "the job is larger than the queue takes")
            whose = "this tenant's part of the job queue" if "per subject" in text else "the job queue"
            raise Failure(Code.QUEUE_FULL, f"{whose} is full")
        if ack["error"].get("err_code") == 10054:
            raise Failure(Code.BODY_TOO_LARGE, "the job is larger than the queue takes")
        log.error("the job queue refused: %s", ack["error"])
        raise Failure(Code.UNAVAILABLE, "the job queue cannot take the job")

    def settle(self, lease: str, verb: str) -> None:
        """Tell JetStream what became of a delivery: +ACK, +TERM, +WPI (still at it) or -NAK."""
        self._send(lease, verb.encode())

    async def delete(self, seq: int) -> None:
        await self._api(f"STREAM.MSG.DELETE.{subjects.JOBS.name}", {"seq": seq, "no_erase": True})

    async def stored(self, seq: int) -> bool | None:
        """Whether the job is still there; None if nobody can say."""
        found = await self._api(f"STREAM.MSG.GET.{subjects.JOBS.name}", {"seq": seq})
        if "error" not in found:
            return True
        return False if found["error"].get("err_code") == 10037 else None

    async def depth(self) -> dict[str, int]:
        """How much the job stream holds; nothing, if nobody can say."""
        state = (await self._api(f"STREAM.INFO.{subjects.JOBS.name}", {})).get("state", {})
        return {what: int(state[what]) for what in ("messages", "bytes") if what in state}

    async def declare_stream(self, config: dict[str, Any]) -> bool:
        """Make the stream, or bring an older one to this configuration; whether it is so now."""
        made = await self._api(f"STREAM.CREATE.{config['name']}", config)
        if "error" in made:
            made = await self._api(f"STREAM.UPDATE.{config['name']}", config)
        if "error" in made:
            log.error("stream %s: %s", config["name"], made["error"])
        return "error" not in made

    async def declare_consumer(self, stream: str, config: dict[str, Any]) -> bool:
        name, subject = config["durable_name"], config["filter_subject"]
        body = {"stream_name": stream, "config": {**config, "name": name}}
        made = await self._api(f"CONSUMER.CREATE.{stream}.{name}.{subject}", body)
        if "error" in made:
            log.error("consumer %s: %s", name, made["error"])
        return "error" not in made

    async def _api(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = json.loads(await self._ask(f"$JS.API.{call}", json.dumps(body).encode(), 1.0))
        except (NoAnswer, NoResponder) as error:
            return {"error": {"description": str(error)}}
        return answer if isinstance(answer, dict) else {"error": {"description": "not an object"}}

    # -- JetStream: what is pulled

    def pull(
        self,
        model: str,
        want: Callable[[], int],
        take: Callable[[Delivery], Awaitable[None]],
        turns: "Turns | None" = None,
    ) -> "Pull":
        return Pull(self, model, want, take, turns)


class Turns(Protocol):
    """Who decides which tenants' jobs are pulled next."""

    def plan(self, now: float) -> dict[str, int]:
        """Consumers to ask now, and for how many jobs each."""
        ...

    def over(self, consumer: str, missing: int) -> None:
        """An ask has ended, and so many of its jobs did not come."""
        ...


@dataclass(slots=True)
class _Open:
    """An ask that is still open."""

    consumer: str
    count: int  # still to come
    until: float


class Pull:
    """Keeps just as many jobs asked for as there is room for.

    Without keys there is one consumer, and an ask for it is always open while there is room: each lives
    for PULL_EXPIRES_S. Tenants' consumers are asked in turns, when they are known to hold something, and
    each ask is over at once. JetStream serves asks in the order they came, so a job that arrives counts
    against its consumer's oldest.
    """

    def __init__(
        self,
        bus: Bus,
        model: str,
        want: Callable[[], int],
        take: Callable[[Delivery], Awaitable[None]],
        turns: Turns | None,
    ):
        self._bus = bus
        self._standing = model  # the consumer of those who have no key
        self._want = want
        self._take = take
        self._turns = turns
        self._open: dict[str, _Open] = {}
        self._inbox = bus._client.new_inbox()
        self._decoder = msgspec.msgpack.Decoder(messages.Job)
        self._more = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._sub: Subscription | None = None
        self._asked = 0

    async def start(self) -> None:
        self._sub = await self._bus._client.subscribe(f"{self._inbox}.*", cb=self._arrived)
        self._pump = asyncio.create_task(self._ask_on())

    async def stop(self) -> None:
        """Ask for nothing more. JetStream drops what is still asked for once nobody listens for it, so that
        a job handed back does not come here again."""
        if self._pump:
            self._pump.cancel()
            self._pump = None
        if self._sub:
            try:
                await self._sub.unsubscribe()
            except nats.errors.Error:
                log.debug("stopped pulling while NATS is away")
            await self._bus._said()
            self._sub = None

    def wake(self) -> None:
        """There may be room again."""
        self._more.set()

    async def _ask_on(self) -> None:
        while True:
            now = time.monotonic()
            for ask, one in list(self._open.items()):
                if one.until <= now:
                    self._over(ask)
            if self._bus.up:
                standing = sum(one.count for one in self._open.values() if one.consumer == self._standing)
                if (room := self._want() - standing) > 0:
                    await self._ask(self._standing, room, subjects.PULL_EXPIRES_S, now)
                for consumer, count in self._turns.plan(now).items() if self._turns else ():
                    await self._ask(consumer, count, subjects.CALL_EXPIRES_S, now)
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), subjects.PULL_EXPIRES_S + 0.06)
            except TimeoutError:
                continue

    async def _ask(self, consumer: str, count: int, expires_s: float, now: float) -> None:
        self._asked += 1
        ask = f"{self._inbox}.{self._asked}"
        # a little later than the server ends it, so that its own notice is the usual end
        self._open[ask] = _Open(consumer, count, now + expires_s + 0.05)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.JOBS.name}.{consumer}"
        body = b'{"batch":%d,"expires":%d}' % (count, int(expires_s * 1e9))
        try:
            await self._bus._client.publish(subject, body, reply=ask)
        except (nats.errors.Error, OSError):
            self._over(ask)

    def _over(self, ask: str) -> None:
        one = self._open.pop(ask, None)
        if one is not None and one.consumer != self._standing and self._turns:
            self._turns.over(one.consumer, one.count)

    async def _arrived(self, msg: Msg) -> None:
        headers = msg.headers or {}
        if not msg.reply.startswith("$JS.ACK."):
            # a status: 404 nothing there, 408 the ask is over, 409 the consumer is gone, 503 no JetStream
            self._over(msg.subject)
            if headers.get("Status") == "408":
                self.wake()
            return
        fields = msg.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>... or, since 2.12 in some set-ups, with domain and account
        at = 3 if len(fields) == 9 else 5
        consumer, delivered, behind = fields[at], int(fields[at + 1]), int(fields[at + 5])
        for ask, one in self._open.items():
            if one.consumer == consumer:
                one.count -= 1
                if not one.count:
                    del self._open[ask]
                break
        try:
            job = self._decoder.decode(msg.data)
        except msgspec.MsgspecError as error:
            self._bus.counts["poisoned"] += 1
            log.error("job %s is not one of ours: %s", msg.reply, error)
            self._bus.publish(subjects.ORPHANS.pattern, messages.Orphan("", msg.reply))
            self.wake()
            return
        await self._take(Delivery(job, msg.reply, delivered, Context.of(msg.headers), consumer, behind > 0))


def _headers(raw: bytes) -> dict[str, str]:
    """NATS/1.0, then a line each."""
    lines = raw.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def _decoder(accepts: Any) -> msgspec.msgpack.Decoder[Any]:
    if accepts not in _decoders:
        _decoders[accepts] = msgspec.msgpack.Decoder(accepts)
    return _decoders[accepts]
