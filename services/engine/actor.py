"""The engine's I/O: jobs are pulled, claims asked, frames sent; the steps run in a thread of their own."""

import asyncio
import atexit
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from millrace import cuda, models, settings
from millrace import messages as m
from millrace.actor import Actor
from millrace.bus import Bus, Inbox, NoAnswer, NoResponder
from millrace.columns import size
from millrace.machine import Machine
from millrace.messages import Here, Message
from millrace.pace import Pace
from millrace.pull import Delivery, Pull
from millrace.resources import resident
from millrace.subjects import BELL, ENGINE, GATEWAY, Role, model_key
from millrace.telemetry import Context
from millrace.wall import wall
from services.engine.jobs.pressure import Level, Pressure, Sample
from services.engine.jobs.roster import Ask, Effect, Roster, Tell
from services.engine.jobs.standstill import Standstill
from services.engine.jobs.turns import Turns
from services.engine.loop import Model, Noted, StepLoop
from services.engine.opening import opened, warm_up
from services.engine.steps.prefix import Prefixes
from services.engine.steps.scheduler import Drafter, Output, Scheduler

TICK_S = 0.05
IDLE_TICK_S = 0.25
WATCH_S = 0.25
IDLE_WATCH_S = 0.5
CLAIM_S = 0.4
"""An owner answers in well under a millisecond; beyond this it is away, and the job comes again."""

log = logging.getLogger("millrace.engine")


async def build(bus: Bus, given: settings.Engine, id: str) -> "EngineActor":
    folder = models.find(given.model, given.models)
    found = await opened(folder, given)
    max_len = min(folder.max_len, given.max_len or folder.max_len)
    return EngineActor(bus, id, folder.name, found.given, found.model, max_len, folder.text, found.drafter)


class EngineActor(Actor):
    role = Role.ENGINE

    def __init__(
        self,
        bus: Bus,
        id: str,
        name: str,
        given: settings.Engine,
        model: Model,
        max_len: int,
        vocabulary: Path,
        drafter: Callable[[], Drafter] | None = None,
    ):
        super().__init__(bus, id)
        self._name = name
        self._slots = given.slots
        self._machine = Machine(given.sysroot)
        self._pressure = Pressure(given.slots)
        self._standstill = Standstill(ends=cuda.number(given.device) is not None)
        self._ticking = Pace(TICK_S, IDLE_TICK_S)
        self._watching = Pace(WATCH_S, IDLE_WATCH_S)
        self._model = model
        loop = asyncio.get_running_loop()
        self._prefixes = Prefixes(model.places, model.shelf)
        self._scheduler = Scheduler(given.slots, given.chunk, self._prefixes, drafter, apart=given.fast)
        self._cache_size = given.slots * max_len  # tokens
        self._steps = StepLoop(
            self._scheduler,
            model,
            deliver=lambda outputs: loop.call_soon_threadsafe(self._stepped, outputs),
            failed=lambda error: loop.call_soon_threadsafe(self.fail, error),
            noted=lambda noted: loop.call_soon_threadsafe(self._noted, noted),
            notes_per_s=given.step_spans,
            vocabulary=vocabulary,
        )
        self._roster = Roster(id, given.slots, self._steps, time.monotonic(), wall, model.kind)
        self._turns = Turns(model_key(name), given.slots, self._roster, self._room)
        self._pull = Pull(bus, model_key(name), self._room, self._job, self._turns)

    async def start(self) -> None:
        await asyncio.to_thread(warm_up, self._model)
        self._steps.start()
        await self.bus.listen(Inbox(ENGINE.to(self.id), m.ToEngine, self._told))
        await self.bus.listen(Inbox(BELL.to(model_key(self._name)), m.ToEngines, self._rung))
        await self._pull.start()
        self.spawn(self._tick())
        self.spawn(self._watch())
        self._steps.prepare()

    def here(self, state: str, pid: int) -> Here:
        counts = {**self.bus.counts, **self._roster.counts, **self._prefixes.counts, **self._scheduler.counts}
        if self._model.shelf is not None:
            counts |= self._model.shelf.counts
        return Here(
            self.role,
            self.id,
            pid,
            state,
            self._roster.load,
            self._slots,
            self._name,
            counts={**counts, **self._pressure.counts, "steps": self._steps.steps},
            pressure=self._pressure.name,
            gauges={"cache_used": self._cache_used, "pressure": float(self._pressure.level)},
            kind=self._model.kind,
        )

    @property
    def _cache_used(self) -> float:
        """Of the tokens that its slots could hold."""
        return sum(sequence.computed for sequence in tuple(self._scheduler.running)) / self._cache_size

    async def drain(self) -> None:
        """Hand what runs to a peer at once: it goes on there from the tokens that were committed."""
        await self._pull.stop()
        self._do(self._roster.leave(time.monotonic()))

    async def stop(self) -> None:
        if not self._steps.stop():
            # What a library has to do at the exit would wait for the device as well.
            atexit.register(os._exit, 1)
        await super().stop()

    # -- what comes in

    def _job(self, delivery: Delivery) -> None:
        job, now, traceparent = delivery.job, time.monotonic(), delivery.context.traceparent
        if not self._roster.holds:
            self._do(self._roster.tick(now))  # or it would take the slow pace for a time that it was stopped
            self._ticking.hurry()
            self._watching.hurry()
        if self._takes(job.request):
            self._do(self._roster.job(job, delivery.lease, delivery.delivery, now, traceparent))
        prompt = len(job.prompt) // 4
        self._turns.took(delivery.lane, job.request, prompt, job.max_tokens, now, more=delivery.more)

    def _rung(self, bell: m.ToEngines, context: Context) -> None:
        self._turns.bell(bell.waiting)
        self._pull.wake()

    def _told(self, message: m.ToEngine, context: Context) -> Message | None:
        match message:
            case m.Ping():
                return self._roster.ping(message, self._steps.steps)
            case m.Resend():
                self._do(self._roster.resend(message))
            case m.Release():
                self._do(self._roster.release(message, time.monotonic()))
                self._pull.wake()
        return None

    async def _claim(self, ask: Ask) -> None:
        try:
            reply = await self.bus.request(GATEWAY.to(ask.owner), ask.claim, m.ClaimReply, CLAIM_S)
        except NoResponder:
            self._do(self._roster.unanswered(ask.claim, gone=True))
        except NoAnswer:
            self._do(self._roster.unanswered(ask.claim, gone=False))
        else:
            self._do(self._roster.replied(ask.claim, reply, time.monotonic()))

    async def _tell(self, tell: Tell) -> None:
        try:
            over = await self.bus.request(GATEWAY.to(tell.owner), tell.holding, m.Release, CLAIM_S)
        except (NoResponder, NoAnswer) as error:
            self._roster.untold(tell.owner, gone=isinstance(error, NoResponder))
        else:
            self._do(self._roster.told(tell.owner, over, time.monotonic()))
        self._pull.wake()

    # -- what goes out

    def _stepped(self, outputs: list[Output]) -> None:
        now = time.monotonic()
        try:
            self._do(self._roster.stepped(outputs, now))
        except Exception as error:
            self.fail(error)
        self._ticking.awake(now)
        self._watching.awake(now)
        if any(output.finish for output in outputs):
            self._pull.wake()

    def _noted(self, noted: Noted) -> None:
        self._do(self._roster.noted(noted, self._cache_used))

    def _room(self) -> int:
        if self._standstill.held:
            return 0
        again = sum(request not in self._roster.holds for request in self._roster.taken)
        return self._pressure.room(self._roster.room, self._roster.load, again)

    def _takes(self, request: str) -> bool:
        """Not another in place of what ran here: that one is delivered again, to somebody, after ACK_WAIT."""
        roster = self._roster
        if self._standstill.held:
            return False
        known = request in roster.taken or request in roster.holds
        return known or not roster.taken or self._pressure.room(roster.room, roster.load) > 0

    async def _watch(self) -> None:
        while True:
            # A machine that cannot be looked at is no reason to end.
            with contextlib.suppress(OSError, ValueError, LookupError):
                sample = Sample(self._machine.memory(), self._machine.throttled(), resident())
                if self._pressure.sample(sample):
                    self._told_of(sample)
            if self._standstill.look(self._steps.under_way, time.monotonic()):
                self._told_of_standing()
            if self._standstill.ended:
                self.fail(TimeoutError(f"a step has not ended for {self._standstill.seconds:.0f} s"))
            busy = bool(self._roster.holds or self._pressure.level)
            await self._watching.pause(time.monotonic(), busy=busy)

    def _told_of_standing(self) -> None:
        if self._standstill.held:
            log.warning("a step has not ended for %.0f s: nothing new is taken", self._standstill.seconds)
        else:
            log.info("steps end again")
            self._pull.wake()

    def _told_of(self, sample: Sample) -> None:
        said = {
            Level.CALM: "memory and processor time suffice again",
            Level.TIGHT: "memory or processor time is tight: half of the slots at most are filled",
            Level.SHORT: "memory is short: no new requests are taken; what runs, runs on",
        }[self._pressure.level]
        level = logging.WARNING if self._pressure.level else logging.INFO
        free, total = size(sample.memory.available), size(sample.memory.total)
        log.log(level, "%s (%s of %s are available, %s are ours)", said, free, total, size(sample.resident))
        self._pull.wake()

    async def _tick(self) -> None:
        while True:
            now = time.monotonic()
            self._do(self._roster.tick(now))
            await self._ticking.pause(now, busy=bool(self._roster.holds))

    def _do(self, effects: Iterable[Effect]) -> None:
        with self.bus.together:
            for effect in effects:
                if isinstance(effect, Ask):
                    self.spawn(self._claim(effect))
                elif isinstance(effect, Tell):
                    self.spawn(self._tell(effect))
                else:
                    # A frame that cannot be sent is not kept: the owner asks for it when NATS is back.
                    self.bus.publish(effect.subject.to(effect.to), effect.message)
