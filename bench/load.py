"""A client that costs little: it keeps each read with its time, and looks into them only afterwards."""

import asyncio
import time
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, cast

import msgspec

_decode = msgspec.json.decode


class Heard(asyncio.Protocol):
    """One request on a connection of its own, and all that came back."""

    def __init__(self, request: bytes):
        self.request = request
        self.asked_ns = 0
        self.reads: list[tuple[int, bytes]] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.asked_ns = time.monotonic_ns()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.reads.append((time.monotonic_ns(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def close(self) -> None:
        if self.transport:
            self.transport.abort()

    # -- afterwards

    @cached_property
    def _bytes(self) -> bytes:
        return b"".join(data for _, data in self.reads)

    @cached_property
    def status(self) -> int:
        """0: no answer."""
        line = self._bytes[:12]
        return int(line[9:12]) if line.startswith(b"HTTP/1.1 ") else 0

    @cached_property
    def headers(self) -> dict[str, str]:
        head = self._bytes.partition(b"\r\n\r\n")[0].decode("latin-1")
        pairs = (line.partition(":") for line in head.split("\r\n")[1:])
        return {name.lower(): value.strip() for name, _, value in pairs}

    @cached_property
    def events(self) -> list["Event"]:
        """Every event of the stream, with the time of the read that completed it."""
        ends = list(accumulate(len(data) for _, data in self.reads))
        raw, at, events = self._bytes, self._bytes.find(b"\r\n\r\n") + 4, []
        while (line := raw.find(b"\r\n", at)) > 0 and (size := int(raw[at:line], 16)):
            start, end = line + 2, line + 2 + size
            if end > len(raw):
                break
            when = self.reads[bisect_left(ends, end)][0]
            events += [Event(when, e[6:]) for e in raw[start:end].split(b"\n\n") if e.startswith(b"data: ")]
            at = end + 2
        return events

    @property
    def whole(self) -> bool:
        return bool(self.events) and self.events[-1].raw == b"[DONE]"

    @cached_property
    def texts(self) -> list[tuple[int, str]]:
        """When each piece of text came, and the piece."""
        return [(e.at_ns, e.text) for e in self.events if e.text]

    @property
    def request_id(self) -> str:
        """The random half of the request's name, which is in the id of each chunk."""
        return str(_decode(self.events[0].raw)["id"]).rpartition("-")[2]

    @property
    def tokens(self) -> int:
        """As the last chunk's usage has it; 0 if it never came."""
        usages = (_decode(e.raw).get("usage") for e in self.events[-2:-1])
        return next((int(u["completion_tokens"]) for u in usages if u), 0)

    @property
    def first_token_s(self) -> float:
        """Infinite if there was none."""
        answered = self.status == 200 and self.events
        return (self.events[0].at_ns - self.asked_ns) / 1e9 if answered else float("inf")


@dataclass(frozen=True, slots=True)
class Event:
    at_ns: int
    raw: bytes

    @property
    def text(self) -> str:
        if self.raw == b"[DONE]":
            return ""
        choices = _decode(self.raw).get("choices")
        return str(choices[0]["text"]) if choices else ""


def completion(
    tokens: int, *, seed: int = 0, prompt: list[int] | None = None, model: str = "sim", key: str = ""
) -> bytes:
    """A streamed completion of exactly so many tokens.

    A prompt of one token needs no prefill: the streams begin when they come.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt or [5],
        "max_tokens": tokens,
        "ignore_eos": True,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    raw = msgspec.json.encode(body)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n"
    if key:
        head += b"authorization: Bearer " + key.encode() + b"\r\n"
    return head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw


async def ask(port: int, request: bytes) -> Heard:
    """Sends it; returns when it is on its way."""
    loop = asyncio.get_running_loop()
    _, heard = await loop.create_connection(lambda: Heard(request), "127.0.0.1", port)
    return heard
