"""`/v1/messages` and `/v1/messages/count_tokens`, as Anthropic has them."""

from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope

from millrace.errors import Failure
from millrace.messages import Chat, Encode
from services.gateway.desk import Answer
from services.gateway.http import fault
from services.gateway.http.body import decode
from services.gateway.http.counter import Counter, Order, at
from services.gateway.speech import Speech
from services.gateway.surfaces.anthropic.asked import Body, Counted, ask, names
from services.gateway.surfaces.anthropic.blocks import Events, Head, told
from services.gateway.visit import Visit


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    def messages(raw: bytes, scope: Scope) -> Order:
        body = decode(Body, raw)
        model = counter.known(body.model)
        asked = ask(body, model, Visit.of(scope))

        def events(job: Answer, speech: Speech) -> Events:
            return Events(Head(job, model), job.prompt_tokens, speech)

        async def whole(job: Answer, speech: Speech) -> bytes:
            return await told(job, Head(job, model), speech)

        return Order(
            ask=asked, model=model, streamed=bool(body.stream), events=events, whole=whole, names=names(body)
        )

    async def count(raw: bytes, scope: Scope) -> dict[str, int]:
        body = decode(Counted, raw)
        model = counter.known(body.model)
        conversation = ask(body, model, Visit.of(scope)).input
        assert isinstance(conversation, Chat)
        try:
            made = await counter.desk.encode(model.name, Encode(conversation, "count"))
        except Failure as failure:
            raise fault.renamed(failure, names(body)) from None
        return {"input_tokens": made.count}

    return [
        at("POST", "/v1/messages", counter.generating(messages)),
        at("POST", "/v1/messages/count_tokens", counter.telling(count)),
    ]
