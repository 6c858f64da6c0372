"""The gateway's I/O: the HTTP face asks, the ledger decides, the bus carries."""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from millrace import exposed, metrics, settings
from millrace import messages as m
from millrace.actor import Actor
from millrace.bus import Bus, Inbox, NoAnswer, NoResponder
from millrace.errors import Code, Failure
from millrace.jetstream import JetStream
from millrace.messages import Here, Message
from millrace.metrics import Family
from millrace.pace import Pace
from millrace.resources import resources
from millrace.subjects import (
    BELL,
    DEAD,
    FIND,
    GATEWAY,
    ORPHANS,
    PRESENCE,
    Lane,
    Role,
    Send,
    model_key,
)
from millrace.telemetry import Context
from millrace.wall import wall
from services.gateway.desk import Answer, Ask, Model
from services.gateway.door import app
from services.gateway.door.gate import Gate
from services.gateway.journey import Journey
from services.gateway.ongoing import Ongoing
from services.gateway.owner import waits
from services.gateway.owner.bells import Rounds, bells
from services.gateway.owner.effects import Bury, Check, Delete, Effect, Lost, Probe, Resubmit, Settle
from services.gateway.owner.entry import Entry
from services.gateway.owner.ledger import Ledger, Watch
from services.gateway.owner.neighbours import Neighbours
from services.gateway.page import kill
from services.gateway.queue import Queue
from services.gateway.search import search
from services.gateway.sight import Sight
from services.gateway.tokenizers import Tokenizers
from services.gateway.view import View
from services.gateway.visit import Visit

TICK_S = 0.05
IDLE_TICK_S = 0.25
MEET_S = 1.0
"""How long a new gateway waits for the others to say who they are; in a start of all they come later."""

ORPHAN_S = 5.0
"""A gateway silent for this long is gone, and nobody waits for its jobs."""

RING_S = 0.25

DECLARE_S = 0.5

log = logging.getLogger("millrace.gateway")


async def build(bus: Bus, given: settings.Gateway, id: str) -> "GatewayActor":
    return GatewayActor(bus, id, given, Gate(given.keys, given.deadline_s, metrics_open=given.metrics_open))


class GatewayActor(Actor):
    role = Role.GATEWAY

    def __init__(self, bus: Bus, id: str, given: settings.Gateway, gate: Gate):
        super().__init__(bus, id)
        self._stored = JetStream(bus)
        self._gate = gate
        self._given = given
        self._ledger = Ledger(id, Watch(given.silence_ms / 1e3, given.pings))
        self._sight = Sight(id, given, os.environ)
        self._neighbours = Neighbours(id)
        self._pace = Pace(TICK_S, IDLE_TICK_S)
        self._models: dict[str, Model] = {}
        self._queue = Queue(self._stored, given, gate)
        self._tokenizers = Tokenizers(bus, given.replicas)
        self._rate = waits.Rate()
        self._connected_at = time.monotonic()
        self._serving: app.Serving | None = None
        self.draining = False

    # -- life

    async def start(self) -> None:
        await self._queue.declare()
        await self.bus.listen(Inbox(GATEWAY.to(self.id), m.ToGateway, self._told))
        await self.bus.listen(Inbox(ORPHANS.to(""), m.Orphan, self._orphaned, queue="gateways"))
        await self.bus.listen(Inbox(FIND.to(""), m.Find, self._found))
        await self.bus.listen(Inbox(PRESENCE.wildcard, Here, self._here))
        await self._meet()
        self._serving = await app.serve(app.build(self, self._given, self._gate), self._given)
        self.spawn(self._tick())
        self.spawn(self._each_second())
        self.spawn(self._declare_again())
        if self._gate.closed:
            self.spawn(self._ring_on())
        if self._sight.exports_metrics:
            self.spawn(self._export())

    async def _meet(self) -> None:
        """Those who are there answer the first sign of a gateway at once; then it knows what it serves."""
        self.bus.publish(PRESENCE.to(self.role), self.here("starting", os.getpid()))
        for _ in range(int(MEET_S / 0.01)):
            if not self.missing():
                break
            await asyncio.sleep(0.01)

    def here(self, state: str, pid: int) -> Here:
        # Its tallies are long, and the other gateways alone want them.
        return self._told_whole(state, pid, tallies=bool(self._neighbours.fellows()))

    def _told_whole(self, state: str, pid: int, *, tallies: bool = True) -> Here:
        counts = {**self.bus.counts, **self._ledger.counts, **self._sight.counts}
        entries = self._ledger.entries
        told = self._sight.tallies(entries.values()) if tallies else []
        return Here(self.role, self.id, pid, state, len(entries), counts=counts, tallies=told)

    async def reconnected(self) -> None:
        self._connected_at = time.monotonic()
        await self._queue.declare()
        self._do(self._ledger.reconnected(time.monotonic()))

    async def drain(self) -> None:
        self.draining = True
        if self._serving:
            await self._serving.stop(self._given.drain_s)

    async def stop(self) -> None:
        await super().stop()
        await asyncio.to_thread(self._sight.close)

    async def _declare_again(self) -> None:
        """A cluster that has no leader yet makes no stream, and a busy server may not answer in time."""
        while True:
            await asyncio.sleep(DECLARE_S)
            if self.bus.up and not self._queue.ready:
                await self._queue.declare()

    # -- those who come and go

    def sampled(self) -> bool:
        return self._sight.sampled()

    def arrived(self, visit: Visit) -> None:
        self._sight.arrived(visit)

    def left(self, visit: Visit) -> None:
        self._sight.left(visit, time.monotonic())

    # -- the desk: what the HTTP face asks

    def models(self) -> list[Model]:
        return list(self._models.values())

    def missing(self) -> list[str]:
        if not self.bus.up:
            return ["nats"]
        inner = (Role.TOKENIZER, Role.ENGINE, Role.DETOKENIZER)
        roles: list[str] = [*self._neighbours.missing(inner, time.monotonic())]
        return roles if self._queue.ready else ["queue", *roles]

    async def families(self, *, whole: bool = True) -> list[Family]:
        """The numbers of the whole service, or of this gateway alone."""
        own = self._told_whole("draining" if self.draining else "ready", os.getpid())
        heres = [msgspec.structs.replace(own, gauges=resources())]
        if whole:
            heres += self._others()
        return exposed.families(heres, await self._stored.depth() if whole else None)

    @property
    def view(self) -> View:
        return self._sight.view

    @property
    def shown(self) -> bool:
        return not self._gate.closed

    @property
    def may_kill(self) -> bool:
        return self._given.kill_button and self.shown

    def kill_engine(self) -> str:
        return kill.busiest(self._others(), Counter(e.engine for e in self._ledger.entries.values()))

    def picture(self, *, whole: bool) -> dict[str, Any]:
        own = self.here("draining" if self.draining else "ready", os.getpid())
        own = msgspec.structs.replace(own, gauges=resources())
        return self.view.picture([own, *self._others()], at=time.time(), whole=whole)

    def _others(self) -> list[Here]:
        return self._neighbours.there(time.monotonic())

    async def metrics(self) -> bytes:
        return metrics.text(await self.families())

    async def open(self, ask: Ask) -> Answer:
        now = time.monotonic()
        entry = Entry.of(ask, self.id, now, wall(now), tags_hidden=self._tags_hidden(ask))
        live = Ongoing(entry, self.cancel, silent=ask.max_tokens == 0)
        allowance = ask.visit.allowance
        charged, admitting = 0, True

        def ended() -> None:
            if admitting:  # what its prompt comes to is not known yet
                return
            self._sight.ended(entry, time.monotonic())
            if allowance:
                allowance.open -= 1
                allowance.spend(entry.prompt_tokens + entry.said - charged)

        if allowance:
            allowance.admit()
        entry.on_end = ended
        journey = self._sight.opened(entry, ask.visit.traceparent, now)
        self._ledger.open(entry)
        self._pace.hurry()
        try:
            await self._queue.open(entry.lane, now)
            await self._admit(entry, entry.prompt, journey)
        except Failure as failure:
            self._do(self._ledger.cancel(entry.request, failure))
            raise
        except BaseException:
            self.cancel(entry.request)
            raise
        finally:
            admitting = False
            if entry.ended:
                ended()
        if allowance and not entry.ended:
            charged = entry.prompt_tokens + (ask.max_tokens or 0)
            allowance.spend(charged)
        ask.visit.queue = self._waits(entry)
        live.prompt_tokens, live.thinking = entry.prompt_tokens, entry.thinking
        live.echoes = [entry.echo]
        return live

    def _waits(self, entry: Entry) -> tuple[int, int]:
        """Its position and, in milliseconds, how long it may take until it runs."""
        position, ahead = waits.position(entry, self._ledger.entries.values())
        return position, self._rate.wait_ms(ahead)

    async def find(self, id: str, tenant: str, *, cancel: bool) -> m.Found | None:
        wanted = m.Find(id, tenant, cancel)
        if isinstance(own := self._found(wanted, Context("", "", 0)), m.Found):
            return own
        others = [id for id in self._neighbours.fellows() if not self._gone(id)]
        return await search(self.bus, wanted, others)

    def _found(self, wanted: m.Find, context: Context) -> m.Found | m.Gone | None:
        entries = self._ledger.find(wanted.id, wanted.tenant)
        if not entries:
            return m.Gone(wanted.id) if wanted.gateway == self.id else None
        position, estimate_ms = max(self._waits(entry) for entry in entries)
        found = m.Found(
            entries[0].model,
            "queued" if all(entry.queued for entry in entries) else "running",
            sum(entry.said for entry in entries),
            position,
            estimate_ms if position else -1,
        )
        if wanted.cancel:
            for entry in entries:
                self.cancel(entry.request)
        return found

    def _tags_hidden(self, ask: Ask) -> bool:
        """Whether the tags of its calls are control tokens, which have to be shown to be read."""
        model = self._models.get(ask.model)
        return ask.calls != 0 and model is not None and bool(model.voice.ends)

    async def _admit(self, entry: Entry, prompt: m.Prompt, journey: Journey | None) -> None:
        try:
            admitted = await self._tokenizers.admit(entry, prompt, journey)
        except Failure as failure:
            if failure.retry_after is None and failure.meaning.retry:
                failure.retry_after = self._rate.retry_after(len(self._ledger.entries))
            if failure.code is Code.QUEUE_FULL:
                self._ring([entry])  # its places may be held by jobs of a gateway that is gone
            raise
        # Said here, since the answer may have come to its end before this word of its beginning.
        entry.prompt_tokens = admitted.prompt_tokens
        entry.echo = admitted.text
        entry.thinking = admitted.thinking
        now = time.monotonic()
        if journey:
            self._sight.admitted(journey, admitted, now)
        self._do(self._ledger.admitted(entry.request, admitted.seq, admitted.prompt_tokens, now))
        self._ring([entry])

    def _ring(self, entries: Iterable[Entry]) -> None:
        """Tell the engines whose jobs wait. Those without a key are always asked for."""
        for model, bell in bells(entries).items():
            self.bus.publish(BELL.to(model), bell)

    async def _ring_on(self) -> None:
        rounds = Rounds()
        while True:
            await asyncio.sleep(RING_S)
            self._ring(entry for entry in self._ledger.entries.values() if entry.queued)
            if self.bus.up and (bell := rounds.next(list(self._gate.tenants.values()))):
                for name in self._models:
                    self.bus.publish(BELL.to(model_key(name)), bell)

    async def encode(self, model: str, wanted: m.Encode) -> m.Encoded:
        encoded: m.Encoded = await self._tokenizers.consult(model_key(model), wanted, m.Encoded)
        return encoded

    async def decode(self, model: str, wanted: m.Decode) -> m.Decoded:
        decoded: m.Decoded = await self._tokenizers.consult(model_key(model), wanted, m.Decoded)
        return decoded

    def cancel(self, request: str) -> None:
        """Synchronous, so that it also runs while the caller's task is being cancelled."""
        self._do(self._ledger.cancel(request, Failure(Code.CANCELLED, "the request was cancelled")))

    # -- what comes in

    def _told(self, message: m.ToGateway, context: Context) -> Message | None:
        now = time.monotonic()
        match message:
            case m.Delta():
                self._do(self._ledger.delta(message, now))
                self._pace.awake(now)
            case m.Claim():
                reply, effects = self._ledger.claim(message, now)
                self._do(effects)
                if isinstance(reply, m.Granted):
                    self._sight.granted(reply, message.engine, now)
                    if reply.strange:
                        log.warning("%s goes on at %s, of another kind", reply.request, message.engine)
                return reply
            case m.Recall():
                answer, effects = self._ledger.recall(message)
                self._do(effects)
                return answer
            case m.Yielded():
                self._do(self._ledger.yielded(message, now))
            case m.Holding():
                return self._ledger.holding(message)
            case m.Hops():
                self._ledger.hops(message)
                self._sight.told(message)
        return None

    def _orphaned(self, orphan: m.Orphan, context: Context) -> None:
        """Its owner did not answer. It is ended only if the owner is gone."""
        if self._gone(m.owner_of(orphan.request)):
            self._do(self._ledger.orphan(orphan.lease))

    def _gone(self, gateway: str) -> bool:
        """Not just away, like we were or are."""
        since = time.monotonic() - ORPHAN_S
        heard = self._neighbours.heard_since(gateway, since)
        return self.bus.up and self._connected_at <= since and not heard

    def _here(self, here: Here, context: Context) -> None:
        now = time.monotonic()
        self._neighbours.heard(here, now)
        if here.role == Role.TOKENIZER and here.model not in self._models:
            self._models[here.model] = Model(
                here.model, here.max_len, int(time.time()), here.voice, here.vectors
            )
            self.spawn(self._offered(here.model))
        self._do(self._ledger.here(here, now))

    async def _offered(self, model: str) -> None:
        await self._queue.open(Lane(model_key(model)), time.monotonic())
        if self._gate.closed:
            await self._queue.declare()  # there is one more model that each tenant has a part of

    # -- time

    async def _tick(self) -> None:
        while True:
            now = time.monotonic()
            self._do(self._ledger.tick(now) if self.bus.up else self._ledger.expire(now))
            self._sight.tick(now)
            self._neighbours.tick(now)
            await self._pace.pause(now, busy=bool(self._ledger.entries))

    async def _each_second(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._look()
            self._rate.measured(self._ledger.counts["ended"])
            now = time.monotonic()
            if self._gate.refresh(self._neighbours.gateways(now), now):
                await self._queue.declare()

    def _look(self) -> None:
        """One second of the view."""
        others = self._others()
        tallied = [tallied.counts.get("generated", 0) for here in others for tallied in here.tallies]
        running = sum(here.load for here in others if here.role == Role.ENGINE)
        waiting = sum(1 for entry in self._ledger.entries.values() if not entry.engine)
        self.view.sample(self._sight.generated + sum(tallied), waiting, running, time.time())

    async def _export(self) -> None:
        """Over OTLP. Of several gateways one tells of the inner processes, or they would count double."""
        while True:
            await asyncio.sleep(self._sight.metrics_every_s)
            peers = [here.id for here in self._others() if here.role == Role.GATEWAY]
            self._sight.export(await self.families(whole=self.id == min([self.id, *peers])))

    # -- what goes out

    def _do(self, effects: Iterable[Effect]) -> None:
        handed_back = False
        with self.bus.together:
            for effect in effects:
                match effect:
                    case Send(subject, to, message):
                        self.bus.publish(subject.to(to), message)
                    case Settle(lease, verb):
                        self._stored.settle(lease, verb)
                        handed_back = handed_back or verb == "-NAK"
                    case Probe():
                        self.spawn(self._probe(effect))
                    case Delete(seq):
                        self.spawn(self._stored.delete(seq))
                    case Check(request, seq):
                        self.spawn(self._check(request, seq))
                    case Lost(request, engine, reason):
                        log.warning("%s was taken from %s: %s", request, engine, reason)
                        self._sight.lost(request, engine, reason, time.monotonic())
                    case Resubmit(prompt):
                        self.spawn(self._resubmit(prompt))
                    case Bury(letter):
                        log.error("gave up %s after %d lost engines", letter.request, letter.deaths)
                        self.bus.publish(DEAD.to(model_key(letter.model)), letter)
        if handed_back:
            self._ring(entry for entry in self._ledger.entries.values() if entry.queued)

    async def _probe(self, probe: Probe) -> None:
        try:
            pong = await self.bus.request(
                probe.subject.to(probe.to), probe.ping, m.Pong, self._given.ping_ms / 1e3
            )
        except (NoResponder, NoAnswer) as error:
            gone = isinstance(error, NoResponder)
            self._do(self._ledger.unanswered(probe.to, gone=gone, now=time.monotonic()))
        else:
            self._do(self._ledger.pong(pong, probe.ping, time.monotonic()))

    async def _check(self, request: str, seq: int) -> None:
        if await self._stored.stored(seq) is False:
            self._do(self._ledger.missing(request))

    async def _resubmit(self, prompt: m.Prompt) -> None:
        entry = self._ledger.entries.get(prompt.request)
        if entry is None:
            return
        try:
            await self._admit(entry, prompt, self._sight.journey(prompt.request))
        except Failure as failure:
            self._do(self._ledger.cancel(prompt.request, failure))
