"""A client that writes down all it receives: every event, and when it came."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_OWN = re.compile(rb'"(id|created)":(?:"[^"]*"|\d+),|,"prompt_tokens_details":{"cached_tokens":\d+}')
"""What differs between two answers to the same request, whom it was asked and what had been asked before: the
rest of their bytes must not."""


@dataclass
class Answer:
    """One answer as it came over the wire."""

    asked_at: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    events: list[bytes] = field(default_factory=list)  # without the comments
    times: list[float] = field(default_factory=list)  # one an event
    body: bytes = b""  # of an answer that is not a stream
    broken: str = ""  # how the connection ended, if not as it should
    whole: bool = False  # the stream came to its [DONE]

    @property
    def bytes_(self) -> list[bytes]:
        """The events, without the id and the time of this one answer."""
        return [_OWN.sub(b"", event) for event in self.events]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(event[6:]) for event in self.events if event != b"data: [DONE]"]

    @property
    def _choices(self) -> list[dict[str, Any]]:
        return self.choices_before(len(self.chunks))

    def choices_before(self, chunk: int) -> list[dict[str, Any]]:
        return [choice for chunk in self.chunks[:chunk] for choice in chunk.get("choices", ())]

    @property
    def text(self) -> str:
        return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in self._choices)

    @property
    def token_ids(self) -> list[int]:
        return [token for choice in self._choices for token in choice.get("token_ids", ())]

    @property
    def finish(self) -> str:
        reasons = [c["finish_reason"] for c in self._choices if c.get("finish_reason")]
        return str(reasons[-1]) if reasons else ""

    @property
    def usage(self) -> dict[str, int]:
        """Without what depends on what had been asked before."""
        said = next((dict(chunk["usage"]) for chunk in reversed(self.chunks) if chunk.get("usage")), {})
        said.pop("prompt_tokens_details", None)
        return said

    @property
    def error(self) -> dict[str, Any]:
        """What the server said went wrong, before the stream or in it."""
        said = [json.loads(self.body)] if self.body.startswith(b"{") else self.chunks
        return next((dict(each["error"]) for each in said if "error" in each), {})

    @property
    def failure(self) -> str:
        """Nothing, if it came to its end."""
        if self.broken:
            return self.broken
        if self.status != 200:
            return f"status {self.status}: {self.error.get('code')}"
        if self.error:
            return f"error event: {self.error.get('code')}"
        return "" if self.whole else "ended without [DONE]"

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    @property
    def first_s(self) -> float:
        return self.times[0] - self.asked_at if self.times else 0.0


def request(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    raw = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + raw


async def ask(
    url: str,
    body: dict[str, Any],
    *,
    path: str = "/v1/chat/completions",
    answer: Answer | None = None,
    news: Callable[[], None] = lambda: None,
) -> Answer:
    """Send it and take the whole answer; `news` is called at every event. Cancelling it hangs up."""
    answer = answer or Answer(0.0)
    answer.asked_at = time.monotonic()
    parts = urlsplit(url)
    writer = None
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(request(url, body, path))
        await _take(reader, answer, news)
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        answer.broken = answer.broken or f"connection: {error!r}"
    finally:
        if writer:
            writer.transport.abort()
    return answer


async def _take(reader: asyncio.StreamReader, answer: Answer, news: Callable[[], None]) -> None:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answer.status = int(lines[0].split()[1])
    answer.headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
    }
    if "content-length" in answer.headers:
        answer.body = await reader.readexactly(int(answer.headers["content-length"]))
        return
    rest = b""
    while size := int(await reader.readline(), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *events, rest = rest.split(b"\n\n")
        now = time.monotonic()
        for event in events:
            if not event.startswith(b":"):
                answer.events.append(event)
                answer.times.append(now)
        answer.whole = bool(answer.events) and answer.events[-1] == b"data: [DONE]"
        news()
    await reader.readline()
    if rest:
        answer.broken = f"{len(rest)} bytes after the last event"
