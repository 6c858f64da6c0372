"""What a NATS connection brings for some subscriptions is handed over as it is read.

nats-py takes a message through a stream, a parser of regular expressions, a queue and a task of its own;
that is most of what a token would cost. Here the frames of tapped subscriptions leave the stream before
nats-py sees it; all others, and every other line of the protocol, pass on to nats-py unchanged.
"""

import asyncio
from collections.abc import Callable, Mapping

Take = Callable[[str, bytes, str, Mapping[str, str]], None]
"""Takes a message's subject, its payload, its reply subject and its headers. It must not raise."""

NOTHING: Mapping[str, str] = {}


class Tap(asyncio.StreamReader):
    def __init__(self, taps: Mapping[int, Take], limit: int):
        """`taps` by subscription id; it may change while the connection lives."""
        super().__init__(limit=limit)
        self._taps = taps
        self._parts: list[bytes] = []  # of a frame whose end has not come yet
        self._have = self._need = 0  # bytes of it: here, and until looking at it again is worth it

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # bytes is what transports bring
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
        at = self._need = 0
        passed = []
        while (line := data.find(b"\r\n", at)) >= 0:
            end = line + 2
            if data.startswith((b"MSG ", b"HMSG "), at):
                # MSG subject id [reply] size, HMSG subject id [reply] header-size size
                words = data[at:line].split()
                end += int(words[-1]) + 2
                if end > len(data):
                    self._need = end - at
                    break
                if (take := self._taps.get(int(words[2]))) is not None:
                    body, fixed, headers = line + 2, 4, NOTHING
                    if words[0] == b"HMSG":
                        body, fixed = body + int(words[-2]), 5
                        headers = _headers(data[line + 2 : body])
                    reply = words[3].decode() if len(words) > fixed else ""
                    at = end
                    take(words[1].decode(), data[body : end - 2], reply, headers)
                    continue
            passed.append(data[at:end])
            at = end
        self._parts = [data[at:]] if at < len(data) else []
        self._have = len(data) - at
        if passed:
            super().feed_data(b"".join(passed))


def _headers(raw: bytes) -> dict[str, str]:
    """NATS/1.0 and perhaps a status, then a line each."""
    first, *lines = raw.decode("utf-8", "replace").split("\r\n")
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
    if status := first[len("NATS/1.0") :].split():
        headers["Status"] = status[0]
    return headers
