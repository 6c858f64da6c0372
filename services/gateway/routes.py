"""The routes: each reads a request, asks the desk and sends the answer."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal

import msgspec
from litestar import get, post, route
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import ASGIApp, HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

from millrace import __version__
from millrace.errors import Code, Failure
from millrace.settings import Gateway
from services.gateway import admit, fault, wire
from services.gateway.attend import attended, read_body
from services.gateway.connection import connection_of
from services.gateway.desk import Answer, Ask, Desk, Model
from services.gateway.speech import Speech, listen
from services.gateway.stream import Events, EventStream, Head
from services.gateway.visit import Visit
from services.gateway.whole import whole

log = logging.getLogger("millrace.gateway")

JSON = (b"content-type", b"application/json")

Shape = Literal["chat", "text"]


def routes(desk: Desk, settings: Gateway) -> list[HTTPRouteHandler]:
    async def complete(shape: Shape, scope: Scope, receive: Receive, send: Send) -> None:
        visit = Visit.of(scope)
        connection = connection_of(scope)
        stream = EventStream(send, connection)

        async def answer() -> None:
            if desk.draining:
                raise Failure(Code.DRAINING, fault.DRAINING)
            raw = await read_body(scope["headers"], receive, settings.max_body)
            body: wire.ChatBody | wire.TextBody
            if shape == "chat":
                body = wire.read(wire.ChatBody, raw)
                model = known(desk, body.model)
                ask = admit.chat(body, deadline_s=settings.deadline_s, traceparent=visit.traceparent)
            else:
                body = wire.read(wire.TextBody, raw)
                model = known(desk, body.model)
                ask = admit.completion(body, deadline_s=settings.deadline_s, traceparent=visit.traceparent)
            await attended(receive, serve(ask, body, model))

        async def serve(ask: Ask, body: wire.Body, model: Model) -> None:
            job = await desk.open(ask)
            try:
                head = _head(shape, job, model, streamed=bool(body.stream))
                speech = listen(ask, model, job)
                if body.stream:
                    await stream.run(job, _events(shape, head, job, body, speech))
                else:
                    text = await whole(job, head, shape, speech, token_ids=bool(body.return_token_ids))
                    await reply(send, 200, text)
            finally:
                job.cancel()  # whatever ended this, the client's leaving above all

        failure = await _outcome(answer())
        if failure is None:
            return
        if not stream.started:
            raise failure
        if connection:
            connection.hang_up()
        await stream.fail(failure)

    async def chat_completions(scope: Scope, receive: Receive, send: Send) -> None:
        await complete("chat", scope, receive, send)

    async def text_completions(scope: Scope, receive: Receive, send: Send) -> None:
        await complete("text", scope, receive, send)

    def ready() -> None:
        missing = desk.missing()
        if desk.draining:
            raise Failure(Code.DRAINING, fault.DRAINING)
        if missing:
            raise Failure(Code.UNAVAILABLE, f"Not ready, missing: {', '.join(missing)}.")

    @post("/v1/chat/completions")
    async def chat() -> ASGIApp:
        return chat_completions

    @post("/v1/completions")
    async def completions() -> ASGIApp:
        return text_completions

    @get("/v1/models")
    async def models() -> ASGIApp:
        return told({"object": "list", "data": [_card(model) for model in desk.models()]})

    @get("/v1/models/{name:path}")  # a path, because names such as org/model have a slash
    async def model(name: FromPath[Path]) -> ASGIApp:
        return told(_card(known(desk, name.as_posix().removeprefix("/"))))

    @route(["/health", "/readyz"], http_method=["GET", "HEAD"])
    async def readyz() -> ASGIApp:
        ready()
        return told({"status": "ok"})

    @route("/livez", http_method=["GET", "HEAD"])
    async def livez() -> ASGIApp:
        return told({"status": "ok"})

    return [chat, completions, models, model, readyz, livez]


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
        return failure
    except Exception as error:
        log.exception("a request failed")
        return fault.of(error)
    return None


def known(desk: Desk, name: str) -> Model:
    models = desk.models()
    for model in models:
        if model.name == name:
            return model
    if not models:
        raise Failure(Code.UNAVAILABLE, "No model is being served yet.")
    raise Failure(Code.MODEL_NOT_FOUND, f"The model '{name[:200]}' does not exist.", param="model")


def _card(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.since,
        "owned_by": "millrace",
        "max_model_len": model.max_len,
    }


def _head(shape: Shape, job: Answer, model: Model, *, streamed: bool) -> Head:
    random = job.request.rpartition("-")[2]  # without the gateway's name
    if shape == "chat":
        name, kind = f"chatcmpl-{random}", "chat.completion.chunk" if streamed else "chat.completion"
    else:
        name, kind = f"cmpl-{random}", "text_completion"
    return Head(
        id=name,
        object=kind,
        created=int(time.time()),
        model=model.name,
        system_fingerprint=_fingerprint(model),
    )


def _fingerprint(model: Model) -> str:
    """The same on every gateway, as long as the same model is served by the same version."""
    said = f"{model.name}\n{model.max_len}\n{__version__}"
    return "fp_" + hashlib.sha256(said.encode()).hexdigest()[:12]


def _events(shape: Shape, head: Head, job: Answer, body: wire.Body, speech: Speech) -> Events:
    options = body.stream_options or wire.StreamOptions()
    return Events(
        head,
        shape,
        job.prompt_tokens,
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        token_ids=bool(body.return_token_ids),
        speech=speech,
    )


async def reply(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    start: HTTPResponseStartEvent = {
        "type": "http.response.start",
        "status": status,
        "headers": [JSON, (b"content-length", b"%d" % len(body)), *(headers or [])],
    }
    await send(start)
    event: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}
    await send(event)


def told(content: dict[str, Any]) -> ASGIApp:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 200, msgspec.json.encode(content))

    return tell
