"""The gateway's application, and the server it runs on."""

import asyncio
import logging
import os
import resource
import socket
import time
from email.utils import formatdate
from typing import Any

import uvicorn
from litestar import Litestar, MediaType, Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.types import Message, Scope
from msgspec import structs
from uvicorn.server import ServerState

from millrace.errors import Code, Failure
from millrace.settings import Gateway
from services.gateway.desk import Desk
from services.gateway.door.gate import Gate
from services.gateway.door.origins import allowed
from services.gateway.door.routes import routes
from services.gateway.door.straight import Straight
from services.gateway.door.watched import watched
from services.gateway.http import fault
from services.gateway.http.connection import Connection
from services.gateway.visit import Visit

log = logging.getLogger("millrace.gateway")

KEEP_ALIVE_S = 75
"""Longer than common proxies and the SDK keep an idle connection, so that it is never we who close first."""

OTHERS = 128
"""Files and sockets that are no client's."""

LAST_WORDS_S = 1.0
"""For what is still running when the grace is over to tell its clients."""


def build(desk: Desk, settings: Gateway, gate: Gate | None = None) -> Litestar:
    gate = gate or Gate(settings.keys, settings.deadline_s, metrics_open=settings.metrics_open)

    async def before_send(message: Message, scope: Scope) -> None:
        if message["type"] == "http.response.start":
            visit = Visit.of(scope)
            headers = [*message["headers"], *visit.headers()]
            if scope["path"].startswith(fault.MESSAGES):
                headers.append((b"request-id", visit.request_id))  # Anthropic's name for it
            if desk.draining:
                headers.append((b"connection", b"close"))
            message["headers"] = headers

    app = Straight(
        routes(desk, settings),
        gate,
        before_send,
        refuse,
        openapi_config=None,
        cors_config=allowed(settings.origins),
        logging_config=None,
        debug=False,  # whatever the environment says: no traceback leaves in a response
    )
    app.state.desk = desk
    return app


def refuse(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Whatever a request ends with before its answer has begun, in the form of its surface."""
    failure = _failure(error)
    if failure.code is Code.INTERNAL and not isinstance(error, Failure):
        log.error("a request failed", exc_info=error)
    Visit.of(request.scope).failure = fault.bare(failure)
    headers = {name.decode(): value.decode() for name, value in fault.headers(failure)}
    if failure.code is Code.REQUEST_TIMEOUT:
        headers["connection"] = "close"  # the rest of the body is not waited for
    if isinstance(error, MethodNotAllowedException) and error.headers and "allow" in error.headers:
        headers["allow"] = error.headers["allow"]
    return Response(
        fault.body(failure, request.scope["path"], versioned=fault.VERSION in request.headers),
        media_type=MediaType.JSON,
        status_code=failure.meaning.status,
        headers=headers,
    )


def _failure(error: Exception) -> Failure:
    match error:
        case NotFoundException():
            return Failure(Code.NOT_FOUND, "There is no such route.")
        case MethodNotAllowedException():
            return Failure(Code.METHOD_NOT_ALLOWED, "This route does not take this method.")
        case HTTPException() if error.status_code < 500:
            return Failure(Code.INVALID_REQUEST, "The request is not valid HTTP.")
    return fault.of(error)


class Serving:
    """An application on a listening socket."""

    def __init__(self, app: Litestar, settings: Gateway, server: asyncio.Server, state: ServerState):
        self._app = app
        self._settings = settings
        self._server = server
        self._state = state
        self.port = int(server.sockets[0].getsockname()[1])
        self._clock = asyncio.ensure_future(self._tick())

    @property
    def connections(self) -> int:
        return len(self._state.connections)

    async def stop(self, grace: float) -> None:
        """Takes nothing new, lets what runs go on for the grace, then tells the rest and closes."""
        self._app.state.desk.draining = True
        # Our copy of the socket alone: a gateway that shares it takes what comes from now on.
        self._server.close()
        end = time.monotonic() + grace
        while self._state.connections and time.monotonic() < end:
            for connection in list(self._state.connections):
                connection.shutdown()  # the idle ones
            await asyncio.sleep(0.02)
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_WORDS_S)
        await asyncio.sleep(0)  # what they wrote goes out with the next turn of the loop
        for connection in list(self._state.connections):
            connection.transport.abort()
        self._clock.cancel()
        await asyncio.wait((self._clock,))
        await self._server.wait_closed()

    async def _tick(self) -> None:
        pause = min(1.0, self._settings.slow_reader_s / 4, self._settings.slow_sender_s / 4)
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            now = time.monotonic()
            for connection in list(self._state.connections):
                assert isinstance(connection, Connection)
                connection.sweep(now)
            await asyncio.sleep(pause)


async def serve(app: Litestar, settings: Gateway) -> Serving:
    """Listens on the handed-over socket, or on host and port. Raises OSError if it cannot."""
    config = uvicorn.Config(
        watched(app, app.state.desk),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # below that, anybody who sends garbage writes our log
        access_log=False,
        proxy_headers=False,  # we use no client address, so nobody needs to be believed about one
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    config.load()
    state = ServerState()
    settings = structs.replace(settings, connections=_affordable(settings.connections))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(config, state, loop, settings), sock=_listening(settings), backlog=2048
    )
    return Serving(app, settings, server, state)


def _affordable(connections: int) -> int:
    """So many of these as the limit of open files, raised as far as it goes, has room for: beyond it new ones
    are closed without a word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHERS
    if soft < wanted and soft not in (hard, resource.RLIM_INFINITY):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return connections
    room = max(soft - OTHERS, soft // 2)
    log.warning("this process may open %d files: it takes %d connections, not %d", soft, room, connections)
    return room


def _listening(settings: Gateway) -> socket.socket:
    if settings.fd >= 0:
        return socket.socket(fileno=os.dup(settings.fd))
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
