"""`/v1/responses`, as OpenAI has it: made, streamed, asked for again, gone on with, cancelled and deleted.

    functions   those that may be called, and their namespaces
    asked       the request, and the chat that it is
    unfolding   one response as it comes, and its events
    kept        those that may be asked for again

They are kept in the memory of the gateway that made them: with several gateways, or after a restart, a
response may be gone before its time, and is not found then.
"""

import time
from urllib.parse import parse_qsl

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

from millrace.errors import Code, Failure
from services.gateway.desk import Answer
from services.gateway.http.attend import attended
from services.gateway.http.body import decode, refused
from services.gateway.http.counter import Counter, Order, at, told
from services.gateway.http.stream import HEADERS
from services.gateway.speech import Speech
from services.gateway.surfaces.responses import asked
from services.gateway.surfaces.responses.functions import homes
from services.gateway.surfaces.responses.kept import KEEP_S, Kept
from services.gateway.surfaces.responses.unfolding import Unfolding
from services.gateway.visit import Visit

PATH = "/v1/responses"
ONE = PATH + "/{id:str}"


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    kept = Kept(time.monotonic)

    def create(raw: bytes, scope: Scope) -> Order:
        body = decode(asked.Body, raw)
        model = counter.known(body.model)
        tenant = Visit.of(scope).tenant.name
        turns = [*_before(body, tenant), *asked.turns(body)]
        made: list[Unfolding] = []

        def events(job: Answer, speech: Speech) -> Unfolding:
            response = Unfolding(job, speech, asked.repeated(body), turns, homes(body.tools or ()))
            made.append(response)
            if body.store is not False:
                kept.put(tenant, response)
            return response

        async def whole(job: Answer, speech: Speech) -> bytes:
            response = events(job, speech)
            while not response.ended:
                response.of(await job.pieces())
            return msgspec.json.encode(response.whole)

        def left(failure: Failure | None) -> None:
            for response in made:
                response.left(failure)

        return Order(
            ask=asked.ask(body, turns, Visit.of(scope)),
            model=model,
            streamed=bool(body.stream),
            events=events,
            whole=whole,
            left=left,
            names=asked.names(body),
        )

    def _before(body: asked.Body, tenant: str) -> list[dict[str, object]]:
        id = body.previous_response_id
        if id is None:
            return []
        response = kept.get(tenant, id)
        if response is None:
            raise _unknown(id, "Send its conversation in 'input'.", param="previous_response_id")
        if not response.ended:
            raise refused("previous_response_id", f"The response '{id[:100]}' is still being made.")
        return response.conversation

    def found(scope: Scope) -> Unfolding:
        id = scope["path_params"]["id"]
        response = kept.get(Visit.of(scope).tenant.name, id)
        if response is None:
            raise _unknown(id, "Ask for it anew.")
        return response

    async def retrieve(scope: Scope, receive: Receive, send: Send) -> None:
        after = _after(scope)
        response = found(scope)
        if after is None:
            await told(response.whole)(scope, receive, send)
        else:
            await attended(scope, receive, _follow(response, after, send))

    async def items(scope: Scope, receive: Receive, send: Send) -> None:
        said = (
            f"What the response '{found(scope).id}' was asked is not kept as items: whoever asked has them."
        )
        raise refused("input_items", said)

    async def cancel(scope: Scope, receive: Receive, send: Send) -> None:
        response = found(scope)
        if response.ended:
            raise refused(None, f"The response '{response.id}' has ended: it cannot be cancelled.")
        response.cancel()
        await told(response.whole)(scope, receive, send)

    async def delete(scope: Scope, receive: Receive, send: Send) -> None:
        response = found(scope)
        response.cancel()
        kept.drop(Visit.of(scope).tenant.name, response.id)
        await told({"id": response.id, "object": "response", "deleted": True})(scope, receive, send)

    return [
        at("POST", PATH, counter.generating(create)),
        at("GET", ONE, retrieve),
        at("DELETE", ONE, delete),
        at("GET", ONE + "/input_items", items),
        at("POST", ONE + "/cancel", cancel),
    ]


def _unknown(id: str, instead: str, param: str | None = None) -> Failure:
    where = f"Each is kept for {KEEP_S / 60:g} minutes where it was made, unless 'store' was false"
    return Failure(Code.NOT_FOUND, f"There is no response '{id[:100]}' here. {where}. {instead}", param=param)


def _after(scope: Scope) -> int | None:
    """The number of the last event that the client has, if it wants the rest."""
    given = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    for name in given:
        if name not in ("stream", "starting_after"):
            raise refused(name[:100], f"Unknown parameter: '{name[:100]}'.")
    stream, after = given.get("stream", "false"), given.get("starting_after")
    if stream not in ("true", "false"):
        raise refused("stream", "Invalid 'stream': true or false.")
    if after is not None and (
        stream == "false" or not (after.isascii() and after.isdigit() and len(after) < 10)
    ):
        raise refused(
            "starting_after", "Invalid 'starting_after': an event's number, where 'stream' is true."
        )
    if stream == "false":
        return None
    return -1 if after is None else int(after)


async def _follow(response: Unfolding, after: int, send: Send) -> None:
    """The events after this one, those that are still to come too."""
    start: HTTPResponseStartEvent = {"type": "http.response.start", "status": 200, "headers": HEADERS}
    await send(start)
    more = True
    while more:
        news, more = response.news, not response.ended
        events = response.events(after)
        after += len(events)
        part: HTTPResponseBodyEvent = {
            "type": "http.response.body",
            "body": b"".join(events),
            "more_body": more,
        }
        await send(part)
        if more:
            await news.wait()
