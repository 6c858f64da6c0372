"""`GET /ui/events`: the service live, as server-sent events.

First a `picture` of all there is; then every quarter of a second the processes again, as `now`, and what
happened in between, one `happened` each. Where keys are asked for it is not there: it tells of everybody.
"""

import asyncio
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

from millrace.errors import Code, Failure
from services.gateway.desk import Desk
from services.gateway.http.attend import attended
from services.gateway.http.counter import at
from services.gateway.http.stream import HEADERS

EVERY_S = 0.25

MOST = 16
"""Readers at once: each costs a little work four times a second."""


class Window:
    def __init__(self, desk: Desk):
        self._desk = desk
        self._readers = 0

    def routes(self) -> list[HTTPRouteHandler]:
        return [at("GET", "/ui/events", self._events)]

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._desk.shown:
            raise Failure(Code.NOT_FOUND, "There is no such route.")
        if self._readers >= MOST:
            raise Failure(Code.UNAVAILABLE, "Too many are looking already.", retry_after=5.0)
        self._readers += 1
        try:
            await attended(scope, receive, self._tell(send))
        finally:
            self._readers -= 1

    async def _tell(self, send: Send) -> None:
        start: HTTPResponseStartEvent = {"type": "http.response.start", "status": 200, "headers": HEADERS}
        await send(start)
        view, seq, whole = self._desk.view, 0, True
        while not self._desk.draining:
            happened = [] if whole else view.since(seq)
            whole = whole or happened is None
            picture = self._desk.picture(whole=whole) | {"kill": self._desk.may_kill}
            parts = [_event("picture" if whole else "now", picture)]
            parts += [_event("happened", each) for each in happened or ()]
            seq, whole = view.seq, False
            await send(_body(b"".join(parts)))
            await asyncio.sleep(EVERY_S)
        await send(_body(b"", more=False))


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))


def _body(body: bytes, *, more: bool = True) -> HTTPResponseBodyEvent:
    return {"type": "http.response.body", "body": body, "more_body": more}
