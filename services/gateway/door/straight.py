"""A request for a route without parameters goes to it straight, past Litestar's layers.

They would be a twentieth of what a whole answer costs the gateway. On both ways a request meets the same:
the gate, then the application, and what it is refused with. Litestar has all that is not plain: unknown
paths and methods, parameters, pages of other origins, strange hosts.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from litestar import Litestar, Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.door.gate import Gate
from services.gateway.http.counter import MOUNTED

HOST = re.compile(rb"[0-9A-Za-z.:\[\]_-]*")


class Straight(Litestar):
    def __init__(
        self,
        handlers: list[HTTPRouteHandler],
        gate: Gate,
        head: Callable[[Message, Scope], Awaitable[None]],
        refuse: Callable[[Request[Any, Any, Any], Exception], Response[bytes]],
        **more: Any,
    ):
        """`head` sees each part of an answer before it goes out; `refuse` makes one of an exception."""
        super().__init__(
            handlers,
            middleware=[gate.middleware],
            before_send=[head],
            exception_handlers={Exception: refuse},
            **more,
        )
        self._gate, self._head, self._refuse = gate, head, refuse
        self._mounted: dict[tuple[str, str], ASGIApp] = {
            (method, path): handler.opt[MOUNTED]
            for handler in handlers
            for path in handler.paths
            for method in handler.http_methods
            if MOUNTED in handler.opt and "{" not in path
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._mounted.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if app is not None and _plain(scope["headers"]):
            await self._straight(app, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _straight(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await self._head(message, scope)
            await send(message)

        scope["path_template"] = scope["path"]
        try:
            self._gate.enter(scope)
            await app(scope, receive, sending)
        except Exception as error:
            if begun:
                raise
            request: Request[Any, Any, Any] = Request(scope, receive, sending)
            answer = self._refuse(request, error).to_asgi_response(None, request)
            await answer(scope, receive, sending)


def _plain(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return all(
        HOST.fullmatch(value) is not None if name == b"host" else name != b"origin" for name, value in headers
    )
