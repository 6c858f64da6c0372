"""`/v1/chat/completions` and `/v1/completions`, as OpenAI and vLLM have them.

    wire      what is asked, and what of it is understood
    admit     an `Ask` made of it; forms says what the answer has to be
    chunks    how an answer is streamed
    whole     how it is told in one piece
    odds      logprobs, in both

What other surfaces ask is made of the same types, so that the same rules hold for it.
"""

import hashlib
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope

from millrace import __version__
from millrace.messages import digits_of
from services.gateway.desk import Answer, Ask, Model
from services.gateway.http.counter import Counter, Order, at
from services.gateway.speech import Speech, listen
from services.gateway.surfaces.openai import admit, wire
from services.gateway.surfaces.openai.chunks import Events, Head
from services.gateway.surfaces.openai.whole import whole
from services.gateway.visit import Visit

Shape = Literal["chat", "text"]

OLDER = {"max_completion_tokens": "max_tokens"}
"""A chat's parameters by the names that they had before."""

TEXT = OLDER | {"messages": "prompt"}
"""A chat's parameters by their names in a completion."""


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    def chat(raw: bytes, scope: Scope) -> Order:
        body = wire.read(wire.ChatBody, raw)
        model = counter.known(body.model)
        asks = admit.choices([admit.chat(body, Visit.of(scope))], body.n or 1)
        names = OLDER if body.max_completion_tokens is None else {}
        return _order("chat", asks, body, model, with_logprobs=bool(body.logprobs), names=names)

    def completion(raw: bytes, scope: Scope) -> Order:
        body = wire.read(wire.TextBody, raw)
        model = counter.known(body.model)
        n = body.n or 1
        asks = admit.choices(admit.completion(body, Visit.of(scope)), body.best_of or n)
        told = body.logprobs is not None
        best = n, body.best_of or n
        return _order("text", asks, body, model, with_logprobs=told, best=best, names=TEXT)

    return [
        at("POST", "/v1/chat/completions", counter.generating(chat)),
        at("POST", "/v1/completions", counter.generating(completion)),
    ]


def _order(
    shape: Shape,
    asks: list[Ask],
    body: wire.Body,
    model: Model,
    *,
    with_logprobs: bool,
    best: tuple[int, int] = (1, 1),
    names: Mapping[str, str],
) -> Order:
    options = body.stream_options or wire.StreamOptions()
    token_ids = bool(body.return_token_ids)

    def speeches(job: Answer, first: Speech) -> list[Speech]:
        return [first, *(listen(ask, model, job) for ask in asks[1:])]

    def events(job: Answer, speech: Speech) -> Events:
        return Events(
            _head(shape, job, model, streamed=True),
            shape,
            job.prompt_tokens,
            include_usage=bool(options.include_usage),
            continuous_usage=bool(options.continuous_usage_stats),
            token_ids=token_ids,
            logprobs=with_logprobs,
            speeches=speeches(job, speech),
            echoes=job.echoes,
        )

    async def all_of(job: Answer, speech: Speech) -> bytes:
        head = _head(shape, job, model, streamed=False)
        return await whole(
            job,
            head,
            shape,
            speeches(job, speech),
            token_ids=token_ids,
            with_logprobs=with_logprobs,
            best=best,
        )

    return Order(
        ask=asks[0],
        more=asks[1:],
        model=model,
        streamed=bool(body.stream),
        events=events,
        whole=all_of,
        names=names,
    )


def _head(shape: Shape, job: Answer, model: Model, *, streamed: bool) -> Head:
    random = digits_of(job.request)
    if shape == "chat":
        name, kind = f"chatcmpl-{random}", "chat.completion.chunk" if streamed else "chat.completion"
    else:
        name, kind = f"cmpl-{random}", "text_completion"
    return Head(
        id=name,
        object=kind,
        created=int(time.time()),
        model=model.name,
        system_fingerprint=_fingerprint(model.name, model.max_len),
    )


@lru_cache
def _fingerprint(model: str, max_len: int) -> str:
    """The same on every gateway, as long as the same model is served by the same version."""
    said = f"{model}\n{max_len}\n{__version__}"
    return "fp_" + hashlib.sha256(said.encode()).hexdigest()[:12]
