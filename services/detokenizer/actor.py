"""The detokenizer's I/O: frames in, deltas out."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from millrace import messages as m
from millrace import models, settings
from millrace.actor import Actor
from millrace.bus import Bus, Inbox, NoAnswer, NoResponder
from millrace.messages import Here, Message
from millrace.subjects import DETOKENIZER, ENGINE, GATEWAY, Role
from millrace.telemetry import Context
from millrace.wall import wall
from services.detokenizer.decode import TextDecoder, learn, load_tokenizer
from services.detokenizer.scribe import Ask, Effect, Scribe

RECALL_S = 0.4
SWEEP_S = 5.0
LINGER_S = 2.0
"""An owner that has not moved its requests by then finds out by itself."""


async def build(bus: Bus, given: settings.Detokenizer, id: str) -> "DetokenizerActor":
    folder = models.find(given.model, given.models)
    return DetokenizerActor(bus, id, folder.name, folder.text)


class DetokenizerActor(Actor):
    role = Role.DETOKENIZER

    def __init__(self, bus: Bus, id: str, name: str, text: Path):
        super().__init__(bus, id)
        self._name = name
        tokenizer = load_tokenizer(text)
        learn(tokenizer)
        self._scribe = Scribe(id, lambda keep: TextDecoder(tokenizer, skip_special=not keep), wall)

    async def start(self) -> None:
        await self.bus.listen(Inbox(DETOKENIZER.to(self.id), m.ToDetokenizer, self._told))
        self.spawn(self._sweep())

    def here(self, state: str, pid: int) -> Here:
        counts = {**self.bus.counts, **self._scribe.counts}
        return Here(self.role, self.id, pid, state, len(self._scribe.live), model=self._name, counts=counts)

    async def drain(self) -> None:
        """'draining' was said: the owners have their requests continued elsewhere. Until they have, go on."""
        for _ in range(int(LINGER_S / 0.02)):
            if not self._scribe.live:
                break
            await asyncio.sleep(0.02)

    def _told(self, message: m.ToDetokenizer, context: Context) -> Message | None:
        now = time.monotonic()
        match message:
            case m.Frame():
                self._do(self._scribe.frame(message, now))
            case m.Opened():
                self._do(self._scribe.opened(message, now))
            case m.Release():
                self._do(self._scribe.release(message, now))
            case m.Ping():
                return m.Pong(self.id, 0, [])
        return None

    def _do(self, effects: Iterable[tuple[str, Effect]]) -> None:
        with self.bus.together:
            for to, effect in effects:
                match effect:
                    case m.Delta() | m.Hops():
                        self.bus.publish(GATEWAY.to(to), effect)
                    case m.Resend():
                        self.bus.publish(ENGINE.to(to), effect)
                    case Ask():
                        self.spawn(self._recall(to, effect))

    async def _recall(self, owner: str, ask: Ask) -> None:
        try:
            reply = await self.bus.request(GATEWAY.to(owner), ask.recall, m.RecallReply, RECALL_S)
        except (NoAnswer, NoResponder):
            self._scribe.refused(ask.recall.request)
            return
        if isinstance(reply, m.Opened):
            self._do(self._scribe.opened(reply, time.monotonic()))
        else:
            self._scribe.refused(ask.recall.request)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._scribe.tick(time.monotonic())
