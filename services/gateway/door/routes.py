"""All routes: those of the public surfaces, and those that say how the service is."""

from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope, Send

from millrace.errors import Code, Failure
from millrace.metrics import CONTENT_TYPE
from millrace.settings import Gateway
from services.gateway import page
from services.gateway.desk import Desk
from services.gateway.door.document import PATH, document
from services.gateway.door.gate import METRICS
from services.gateway.http import fault
from services.gateway.http.counter import Counter, at, reply, told
from services.gateway.page import kill
from services.gateway.page.live import Window
from services.gateway.surfaces import (
    anthropic,
    embeddings,
    models,
    ollama,
    openai,
    requests,
    responses,
    tokens,
)
from services.gateway.visit import Visit

TEXT = (b"content-type", CONTENT_TYPE)
WELL = {"status": "ok"}


def routes(desk: Desk, settings: Gateway) -> list[HTTPRouteHandler]:
    counter = Counter(desk, settings)
    surfaces = (openai, anthropic, models, embeddings, ollama, requests, responses, tokens)
    return [
        *(route for surface in surfaces for route in surface.routes(counter)),
        *_health(desk),
        *Window(desk).routes(),
        *page.routes(),
        *kill.routes(desk),
    ]


def _health(desk: Desk) -> list[HTTPRouteHandler]:
    async def ready(scope: Scope, receive: Receive, send: Send) -> None:
        missing = desk.missing()
        if desk.draining:
            raise Failure(Code.DRAINING, fault.DRAINING)
        if missing:
            raise Failure(Code.UNAVAILABLE, f"Not ready, missing: {', '.join(missing)}.")
        await told(WELL)(scope, receive, send)

    said = document()

    async def described(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 200, said)

    async def scraped(scope: Scope, receive: Receive, send: Send) -> None:
        if not Visit.of(scope).operator:
            raise Failure(Code.AUTHENTICATION, f"{METRICS} takes an operator's key, not a tenant's.")
        await reply(send, 200, await desk.metrics(), TEXT)

    return [
        *(at("GET", path, ready) for path in ("/health", "/readyz")),
        at("GET", "/livez", told(WELL)),
        at("GET", METRICS, scraped),
        at("GET", PATH, described),
    ]
