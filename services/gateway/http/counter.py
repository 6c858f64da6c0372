"""Where requests are taken and answers handed out: what every public surface shares.

A surface says how a body becomes an `Order`, and the order how its answer is told. Reading within the
limits, noticing that the client has gone, failing in the right way before the answer began and in the
middle of it, and letting go of the job are here, once.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from litestar import route
from litestar.handlers import HTTPRouteHandler
from litestar.types import (
    ASGIApp,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    Message,
    Method,
    Receive,
    Scope,
    Send,
)

from millrace.errors import Code, Failure
from millrace.settings import Gateway
from services.gateway.desk import Answer, Ask, Desk, Model
from services.gateway.http import fault
from services.gateway.http.attend import attended, read_body
from services.gateway.http.body import refused
from services.gateway.http.connection import connection_of
from services.gateway.http.siblings import opened
from services.gateway.http.stream import EventStream, Telling
from services.gateway.speech import Speech, listen

log = logging.getLogger("millrace.gateway")

JSON = (b"content-type", b"application/json")

MOUNTED = "mounted"
"""Under this name a route's handler has its application."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One answer wanted, or several, and how they are told."""

    ask: Ask
    more: list[Ask] = field(default_factory=list)
    model: Model
    streamed: bool
    events: Callable[[Answer, Speech], Telling]
    whole: Callable[[Answer, Speech], Awaitable[bytes]]
    names: Mapping[str, str] = field(default_factory=dict)
    """The surface's names of OpenAI's parameters, for what is found wrong with them later."""
    left: Callable[[Failure | None], None] = lambda failure: None
    """Called when nobody tells it any more: it was told, its client has gone, or it failed."""


class Counter:
    def __init__(self, desk: Desk, settings: Gateway):
        self.desk = desk
        self._settings = settings

    def known(self, name: str) -> Model:
        models = self.desk.models()
        for model in models:
            if model.name == name:
                return model
        if not models:
            raise Failure(Code.UNAVAILABLE, "No model is being served yet.")
        raise Failure(Code.MODEL_NOT_FOUND, f"The model '{name[:200]}' does not exist.", param="model")

    def only(self) -> str:
        """The name of the model, for a request without one."""
        models = self.desk.models()
        if len(models) > 1:
            raise refused("model", "Missing parameter: 'model'.")
        return models[0].name if models else ""

    def generating(self, take: Callable[[bytes, Scope], Order | bytes]) -> ASGIApp:
        """Answers with what the model generates, or with what is known without it."""

        async def generate(scope: Scope, receive: Receive, send: Send) -> None:
            connection = connection_of(scope)
            stream = EventStream(send, connection)
            taken: list[Order] = []

            async def answer() -> None:
                order = take(await self._body(scope, receive), scope)
                if isinstance(order, bytes):
                    await reply(send, 200, order)
                else:
                    taken.append(order)
                    if order.model.vectors:
                        raise refused("model", f"The model '{order.model.name}' makes vectors, and no text.")
                    await attended(scope, receive, serve(order))

            async def serve(order: Order) -> None:
                order.ask.visit.whole = not order.streamed
                job = await opened(self.desk, [order.ask, *order.more])
                try:
                    speech = listen(order.ask, order.model, job)
                    if order.streamed:
                        await stream.run(job, order.events(job, speech))
                    else:
                        await reply(send, 200, await order.whole(job, speech))
                finally:
                    job.cancel()  # whatever ended this, the client's leaving above all

            failure = await _outcome(answer())
            for order in taken:
                if failure:
                    failure = fault.renamed(failure, order.names)
                order.left(failure)
            if failure is None:
                return
            if not stream.started:
                raise failure
            if connection:
                connection.hang_up()
            await stream.fail(failure)

        return generate

    def telling(self, find: Callable[[bytes, Scope], Awaitable[Any]]) -> ASGIApp:
        """Answers with what is found for a body."""

        async def tell(scope: Scope, receive: Receive, send: Send) -> None:
            async def answer() -> None:
                raw = await self._body(scope, receive)

                async def found() -> None:
                    await reply(send, 200, msgspec.json.encode(await find(raw, scope)))

                await attended(scope, receive, found())

            if failure := await _outcome(answer()):
                raise failure

        return tell

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        if self.desk.draining:
            raise Failure(Code.DRAINING, fault.DRAINING)
        connection = connection_of(scope)
        within = None if connection and connection.arrived else self._settings.slow_sender_s
        return await read_body(scope["headers"], receive, self._settings.max_body, within)


def at(method: Literal["GET", "POST", "DELETE"], path: str, app: ASGIApp) -> HTTPRouteHandler:
    """The route of an application. Where GET works, HEAD does: those who look whether we are well ask so."""
    methods: list[Method] = ["GET", "HEAD"] if method == "GET" else [method]
    whole = _heading(app) if method == "GET" else app

    # The application says its own status; DELETE's 204 has no body.
    @route(path, http_method=methods, status_code=200, opt={MOUNTED: whole})
    async def mounted() -> ASGIApp:
        return whole

    return mounted


class _Begun(BaseException):
    """The headers are sent, and the rest was not asked for. No failure: nobody is to catch it on its way."""


def _heading(app: ASGIApp) -> ASGIApp:
    """Answers HEAD with what the application's answer to GET begins with, even where that never ends."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def begin(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                end: HTTPResponseBodyEvent = {"type": "http.response.body", "body": b"", "more_body": False}
                await send(end)
                raise _Begun

        with contextlib.suppress(_Begun):
            await app(scope, receive, begin if scope.get("method") == "HEAD" else send)

    return answer


async def _outcome(work: Coroutine[Any, Any, None]) -> Failure | None:
    """Runs it, and says how it failed, if it did."""
    try:
        await work
    except asyncio.CancelledError:
        # Only a gateway whose grace is over cancels the task of a request.
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return Failure(Code.DRAINING, fault.DRAINING)
    except Failure as failure:
        return fault.bare(failure)
    except Exception as error:
        log.exception("a request failed")
        return fault.of(error)
    return None


async def reply(
    send: Send, status: int, body: bytes, kind: tuple[bytes, bytes] = JSON, *more: tuple[bytes, bytes]
) -> None:
    start: HTTPResponseStartEvent = {
        "type": "http.response.start",
        "status": status,
        "headers": [kind, (b"content-length", b"%d" % len(body)), *more],
    }
    await send(start)
    event: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}
    await send(event)


def told(content: Any) -> ASGIApp:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 200, msgspec.json.encode(content))

    return tell
