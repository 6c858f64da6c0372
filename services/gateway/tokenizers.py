"""A model's tokenizers, whichever of them answers. What is asked may be asked again: silence never ends it
before patience does."""

import asyncio
import time
from typing import Any

from millrace import messages as m
from millrace.bus import Bus, NoAnswer, NoResponder
from millrace.errors import Code, Failure
from millrace.subjects import TOKENIZER
from millrace.telemetry import Context
from services.gateway.journey import Journey
from services.gateway.owner.entry import Entry

ANSWER_S = 1.5
"""A tokenizer takes milliseconds for a prompt, and at most a second waiting for the store."""

AGAIN_S = 0.05

PATIENCE_S = 6.0
"""A tokenizer or NATS that died is back well before this; a client that waited so long is told to retry."""

ELECTION_S = 15.0
"""Servers of a NATS cluster have noticed by then that their leader is gone, and agreed on another."""


class Tokenizers:
    def __init__(self, bus: Bus, servers: int):
        """`servers` of NATS keep the queue."""
        self._bus = bus
        self._patience_s = PATIENCE_S if servers == 1 else ELECTION_S

    async def admit(self, entry: Entry, prompt: m.Prompt, journey: Journey | None) -> m.Admitted:
        """Have a job made of it. Raises Failure, the entry's own if it ends meanwhile."""
        give_up = min(time.monotonic() + self._patience_s, entry.deadline)
        while True:
            left_ms = int((entry.deadline - time.monotonic()) * 1000)
            context = Context(entry.request, entry.traceparent, left_ms)
            if journey:
                journey.tries += 1
            failure = _silence()
            try:
                answer = await self._bus.request(
                    TOKENIZER.to(prompt.model), prompt, m.FromTokenizer, ANSWER_S, context
                )
            except (NoResponder, NoAnswer):
                pass
            else:
                if isinstance(answer, m.Admitted):
                    return answer
                failure = answer.failure()
                if failure.code is not Code.UNAVAILABLE:
                    raise failure
            if entry.failure is not None:
                raise entry.failure
            if time.monotonic() + AGAIN_S >= give_up:
                raise failure
            await asyncio.sleep(AGAIN_S)

    async def consult(self, model: str, message: m.Message, answer: Any) -> Any:
        """Ask by the model's key what leaves no trace. Raises Failure."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                told = await self._bus.request(TOKENIZER.to(model), message, answer | m.Refused, ANSWER_S)
            except (NoResponder, NoAnswer):
                if time.monotonic() + AGAIN_S >= give_up:
                    raise _silence() from None
                await asyncio.sleep(AGAIN_S)
                continue
            if isinstance(told, m.Refused):
                raise told.failure()
            return told


def _silence() -> Failure:
    return Failure(Code.UNAVAILABLE, "no tokenizer answers", retry_after=1.0)
