"""Every HTTP exchange is seen from its first byte to its last."""

import time

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.desk import Onlooker
from services.gateway.http.connection import connection_of
from services.gateway.visit import Visit


def watched(app: ASGIApp, onlooker: Onlooker) -> ASGIApp:
    async def exchange(scope: Scope, receive: Receive, send: Send) -> None:
        visit = Visit.begin(scope, sampled=onlooker.sampled())
        connection = connection_of(scope)
        pushed = connection.pushed if connection else 0
        if connection and scope["http_version"] == "1.0":
            send = connection.lasting(send)

        async def sending(message: Message) -> None:
            began = time.monotonic()
            await send(message)
            visit.said(message, began, time.monotonic())

        onlooker.arrived(visit)
        try:
            await app(scope, receive, sending)
        finally:
            visit.left_at = time.monotonic()
            visit.sent += connection.pushed - pushed if connection else 0
            visit.route = str(scope.get("path_template") or "")
            onlooker.left(visit)

    return exchange
