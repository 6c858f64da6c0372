"""A desk that plays a script: no bus, no model, and it remembers what it was asked."""

import asyncio
import secrets
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from millrace.errors import Failure
from millrace.messages import Decode, Decoded, Encode, Encoded, Found, Text
from services.gateway.desk import Ask, Finish, Model, Piece
from services.gateway.view import View
from services.gateway.visit import Visit

Step = list[Piece] | float | Failure | asyncio.Event
"""Pieces that come together, a pause in seconds, a bad end, or something to wait for."""


def said(*texts: str, finish: Finish = "stop") -> list[Piece]:
    """One piece a text, numbered from 100; the last one ends the answer."""
    last = len(texts) - 1
    return [Piece(100 + i, text, finish if i == last else "") for i, text in enumerate(texts)]


async def until(true: Callable[[], bool]) -> None:
    """Waits for what no event tells; the caller sets the limit."""
    while not true():
        await asyncio.sleep(0.001)


class ScriptedAnswer:
    def __init__(self, script: list[Step], prompt_tokens: int = 7):
        self.request = f"gw1-{secrets.token_hex(16)}"
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.thinking = False
        self.echoes = [""]
        self.ended = False
        self.news = asyncio.Event()
        self.eager: Callable[[list[Piece]], bool] | None = None
        self.patient = False
        self.cancelled = asyncio.Event()
        self.taken = 0  # steps
        self._script = script

    def ready(self) -> list[Piece]:
        """What comes without a wait: a pause has to be waited for, with `pieces`."""
        if self.taken == len(self._script):
            return []
        step = self._script[self.taken]
        if isinstance(step, float | asyncio.Event):
            return []
        self.taken += 1
        if isinstance(step, Failure):
            raise step
        self.ended = bool(step[-1].finish)
        return step

    async def pieces(self) -> list[Piece]:
        while self.taken < len(self._script):
            step = self._script[self.taken]
            self.taken += 1
            match step:
                case list():
                    self.ended = bool(step[-1].finish)
                    return step
                case Failure():
                    raise step
                case asyncio.Event():
                    await step.wait()
                case _:
                    await asyncio.sleep(step)
        await asyncio.Event().wait()  # a script without an end never ends
        raise AssertionError

    def cancel(self) -> None:
        self.cancelled.set()


class ScriptedDesk:
    def __init__(self, *script: Step):
        self.draining = False
        self.script: list[Step] = list(script) or [said("Hel", "lo")]
        self.asks: list[Ask] = []
        self.answers: list[ScriptedAnswer] = []
        self.opening: Callable[[Ask], Awaitable[None]] | None = None  # may wait, or raise a Failure
        self.served = [Model("sim", 4096, 1_700_000_000)]
        self.lacks: list[str] = []
        self.visits: list[Visit] = []  # that are over
        self.view = View()
        self.shown = True
        self.may_kill = False
        self.live: dict[tuple[str, str], Found] = {}  # by id and tenant

    def kill_engine(self) -> str:
        return "engine_1"

    def sampled(self) -> bool:
        return True

    def arrived(self, visit: Visit) -> None:
        pass

    def left(self, visit: Visit) -> None:
        self.visits.append(visit)

    def picture(self, *, whole: bool) -> dict[str, Any]:
        return self.view.picture([], at=0.0, whole=whole)

    async def metrics(self) -> bytes:
        return b""

    async def open(self, ask: Ask) -> ScriptedAnswer:
        self.asks.append(ask)
        if self.opening is not None:
            await self.opening(ask)
        answer = ScriptedAnswer(self.script)
        self.answers.append(answer)
        return answer

    async def encode(self, model: str, wanted: Encode) -> Encoded:
        """A token a character."""
        text = wanted.input.text if isinstance(wanted.input, Text) else wanted.input.messages.decode()
        packed = struct.pack(f"<{len(text)}I", *map(ord, text))
        return Encoded(len(text), packed, list(text) if wanted.want == "texts" else [])

    async def decode(self, model: str, wanted: Decode) -> Decoded:
        return Decoded("".join(map(chr, struct.unpack(f"<{len(wanted.ids) // 4}I", wanted.ids))))

    async def find(self, id: str, tenant: str, *, cancel: bool) -> Found | None:
        return self.live.pop((id, tenant), None) if cancel else self.live.get((id, tenant))

    def models(self) -> list[Model]:
        return self.served

    def missing(self) -> list[str]:
        return self.lacks
