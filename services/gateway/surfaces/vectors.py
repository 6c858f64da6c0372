"""Vectors of texts: each text is a job of its own, and for the client they are one answer."""

import asyncio
import base64
import math
import sys
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from millrace.errors import Code, Failure
from millrace.messages import Ids, Sampling, Text
from services.gateway.desk import Ask, Desk, Model
from services.gateway.http.body import refused
from services.gateway.visit import Visit

MAX_TEXTS = 2048
"""Of one request, as OpenAI has it."""

WINDOW = 16
"""Of them are jobs at once: enough to keep an engine busy, and no flood of the queue."""


class Vector:
    def __init__(self, data: bytes):
        self._values = array("f", data)
        if sys.byteorder == "big":
            self._values.byteswap()

    def cut(self, size: int | None) -> "array[float]":
        """The beginning alone, of the length one again: models are trained for that."""
        if not size or size == len(self._values):
            return self._values
        some = self._values[:size]
        length = math.sqrt(math.fsum(x * x for x in some)) or 1.0
        return array("f", (x / length for x in some))

    def told(self, size: int | None = None) -> msgspec.Raw:
        """As JSON. Made for each vector as it comes: for all at once other requests would have to wait."""
        return msgspec.Raw(msgspec.json.encode(self.cut(size).tolist()))

    def packed(self, size: int | None = None) -> str:
        """The bytes of little-endian fp32, in base64."""
        values = self.cut(size)[:]
        if sys.byteorder == "big":
            values.byteswap()
        return base64.b64encode(values.tobytes()).decode()


@dataclass(frozen=True, slots=True)
class Found:
    told: list[msgspec.Raw | str]  # in the order of the texts
    tokens: int


@dataclass(frozen=True, slots=True)
class Asks:
    each: list[Ask]
    param: str  # the client's name of the texts
    visit: Visit

    def failure(self, at: int, failure: Failure) -> Failure:
        """The same, naming the text."""
        if failure.param is None:
            return failure
        param = self.param if len(self.each) == 1 else f"{self.param}[{at}]"
        return Failure(failure.code, failure.message, param=param, retry_after=failure.retry_after)


def asks(
    model: Model,
    texts: Iterable[str | list[int]],
    visit: Visit,
    *,
    param: str = "input",
    dimensions: int | None = None,
    cut: bool = False,
) -> Asks:
    """`cut`: what is too long is, in place of a refusal."""
    if not model.vectors:
        raise refused("model", f"The model '{model.name}' generates text: it makes no embeddings.")
    if dimensions and dimensions > model.vectors:
        raise refused("dimensions", f"'dimensions' is {dimensions}, more than the model's {model.vectors}.")
    given = list(texts)
    for at, text in enumerate(given):
        if not text:
            where = param if len(given) == 1 else f"{param}[{at}]"
            raise refused(where, f"'{where}' is empty.")
    each = [
        Ask(
            model=model.name,
            input=Text(text) if isinstance(text, str) else Ids(text),
            sampling=Sampling(0),
            max_tokens=None,
            stop_ids=[],
            ignore_eos=True,
            stops=[],
            include_stop=False,
            keep_special=False,
            visit=visit,
            vector=True,
            cut=cut,
        )
        for text in given
    ]
    return Asks(each, param, visit)


async def found(desk: Desk, asks: Asks, tell: Callable[[Vector], msgspec.Raw | str]) -> Found:
    """All of them, or the first failure; then, and when the client goes, the others are let go of."""
    visit = asks.visit
    told: list[msgspec.Raw | str] = [""] * len(asks.each)
    tokens = 0
    waiting = iter(enumerate(asks.each))

    async def work() -> None:
        nonlocal tokens
        for at, ask in waiting:
            try:
                job = await desk.open(ask)
                try:
                    pieces = await job.pieces()
                finally:
                    job.cancel()
            except Failure as failure:
                raise asks.failure(at, failure) from None
            tokens += job.prompt_tokens
            told[at] = tell(Vector(pieces[-1].vector))

    once = min(WINDOW, len(asks.each), visit.allowance.room if visit.allowance else WINDOW)
    working = [asyncio.ensure_future(work()) for _ in range(once)]
    try:
        async with asyncio.timeout_at(_deadline(visit)):
            await asyncio.gather(*working)
    except TimeoutError:
        done = sum(bool(each) for each in told)
        raise Failure(
            Code.DEADLINE_EXCEEDED,
            f"the request's deadline of {visit.deadline_s:g} s passed after {done} of {len(told)} vectors",
        ) from None
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    return Found(told, tokens)


def _deadline(visit: Visit) -> float:
    """In the event loop's time. Texts wait for one another, and each job's own deadline begins with it."""
    return asyncio.get_running_loop().time() + visit.began + visit.deadline_s - time.monotonic()
