"""Jobs come to an engine: as many as it has room for, asked of JetStream."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from millrace import messages, subjects
from millrace.bus import Bus
from millrace.telemetry import Context

log = logging.getLogger("millrace.pull")


@dataclass(frozen=True)
class Delivery:
    """A job as JetStream handed it over."""

    job: messages.Job
    lease: str
    delivery: int
    context: Context
    lane: str = ""  # the consumer it came from
    more: bool = False  # there were others behind it


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
        take: Callable[[Delivery], None],
        turns: Turns | None = None,
    ):
        self._bus = bus
        self._standing = model  # the consumer of those who have no key
        self._want = want
        self._take = take
        self._turns = turns
        self._open: dict[str, _Open] = {}
        self._inbox = bus.inbox()
        self._decoder = msgspec.msgpack.Decoder(messages.Job)
        self._more = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._end: Callable[[], Awaitable[None]] | None = None
        self._asked = 0

    async def start(self) -> None:
        self._end = await self._bus.hear(f"{self._inbox}.*", self._arrived)
        self._pump = asyncio.create_task(self._ask_on())

    async def stop(self) -> None:
        """Ask for nothing more. JetStream drops what is still asked for once nobody listens for it, so that
        a job handed back does not come here again."""
        if self._pump:
            self._pump.cancel()
            self._pump = None
        if self._end:
            await self._end()
            await self._bus.flush()
            self._end = None

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
                    self._ask(self._standing, room, subjects.PULL_EXPIRES_S, now)
                for consumer, count in self._turns.plan(now).items() if self._turns else ():
                    self._ask(consumer, count, subjects.CALL_EXPIRES_S, now)
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), subjects.PULL_EXPIRES_S + 0.06)
            except TimeoutError:
                continue

    def _ask(self, consumer: str, count: int, expires_s: float, now: float) -> None:
        self._asked += 1
        ask = f"{self._inbox}.{self._asked}"
        # a little later than the server ends it, so that its own notice is the usual end
        self._open[ask] = _Open(consumer, count, now + expires_s + 0.05)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.JOBS.name}.{consumer}"
        body = b'{"batch":%d,"expires":%d}' % (count, int(expires_s * 1e9))
        if not self._bus.send(subject, body, reply=ask):
            self._over(ask)

    def _over(self, ask: str) -> None:
        one = self._open.pop(ask, None)
        if one is not None and one.consumer != self._standing and self._turns:
            self._turns.over(one.consumer, one.count)

    def _arrived(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str]) -> None:
        try:
            self._heard(subject, payload, reply, headers)
        except Exception:  # told and counted; the job is delivered again, to somebody
            self._bus.counts["failed"] += 1
            log.exception("a job on %s could not be taken", subject)

    def _heard(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str]) -> None:
        if not reply.startswith("$JS.ACK."):
            # a status: 404 nothing there, 408 the ask is over, 409 the consumer is gone, 503 no JetStream
            self._over(subject)
            if headers.get("Status") == "408":
                self.wake()
            return
        fields = reply.split(".")
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
            job = self._decoder.decode(payload)
        except messages.MISREAD as error:
            # What a newer version asks for comes again, after ACK_WAIT, until one of that version has it.
            if not self._bus.misread(reply, payload, error):
                self._bus.publish(subjects.ORPHANS.pattern, messages.Orphan("", reply))
            if consumer != self._standing and self._turns:
                self._turns.over(consumer, 1)
            self.wake()
            return
        self._take(Delivery(job, reply, delivered, Context.of(headers), consumer, behind > 0))
