"""`/v1/requests/{id}`: what became of a request that is still live, and its end before its time.

The id is any that its client knows: the `x-request-id` of its answer or its own, or the id in the answer's
body. Another tenant's request is not found, whatever the id.
"""

from typing import Any

from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope, Send

from millrace.errors import Code, Failure
from millrace.messages import Found
from services.gateway.http.counter import Counter, at, told
from services.gateway.visit import Visit

PATH = "/v1/requests/{name:str}"


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    async def find(scope: Scope, *, cancel: bool) -> tuple[str, Found]:
        name = scope["path_params"]["name"]
        found = await counter.desk.find(name, Visit.of(scope).tenant.name, cancel=cancel)
        if found is None:
            raise Failure(Code.NOT_FOUND, f"There is no live request '{name[:200]}'.")
        return name, found

    async def show(scope: Scope, receive: Receive, send: Send) -> None:
        name, found = await find(scope, cancel=False)
        said: dict[str, Any] = {
            "id": name,
            "object": "request",
            "model": found.model,
            "status": found.status,
            "tokens": found.tokens,
            "position": found.position or None,
            "estimate_ms": found.estimate_ms if found.estimate_ms >= 0 else None,
        }
        await told(said)(scope, receive, send)

    async def cancel(scope: Scope, receive: Receive, send: Send) -> None:
        name, found = await find(scope, cancel=True)
        said = {"id": name, "object": "request", "status": "cancelled", "tokens": found.tokens}
        await told(said)(scope, receive, send)

    return [at("GET", PATH, show), at("DELETE", PATH, cancel)]
