"""Ollama's API: `/api/chat`, `/api/generate` and what its clients ask beside them.

    asked     what is asked, and the same as OpenAI's clients would ask it
    lines     how a text is answered: lines of JSON, streamed unless the client says no
    embed     vectors

A model is always loaded here and is never unloaded, so that `keep_alive` changes nothing.
"""

import hashlib
import time
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from millrace.errors import Code, Failure
from services.gateway.desk import Model
from services.gateway.http.body import decode, refused
from services.gateway.http.counter import Counter, Order, at, reply, told
from services.gateway.page import browser
from services.gateway.surfaces.ollama import embed, lines
from services.gateway.surfaces.ollama.asked import Body, ChatBody, TextRequest, ask_chat, ask_text
from services.gateway.surfaces.ollama.lines import rfc3339
from services.gateway.visit import Visit

RUNNING = b"Ollama is running"
"""What clients look for at `/` before they believe that there is a server."""

VERSION = "0.14.1"
"""The Ollama whose API this is, with responses as OpenAI has them and messages as Anthropic has them. Clients
that need a newer one turn away."""

LATEST = ":latest"
"""What clients put behind a name without a tag."""

SUCCESS = msgspec.Raw(b'{"status":"success"}\n')
"""A line of its own: clients read what is pulled by lines."""

NEVER = "9999-12-31T23:59:59Z"


class Named(Struct, forbid_unknown_fields=True, kw_only=True):
    """Of the routes that want a model's name and little else. Older clients call it `name`."""

    model: str = ""
    name: str = ""
    verbose: bool | None = None  # there is no more to tell
    stream: bool | None = None  # one line is all there is
    insecure: bool | None = None


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    def known(name: str) -> Model:
        models = {model.name for model in counter.desk.models()}
        return counter.known(name if name in models else name.removesuffix(LATEST))

    def chatted(raw: bytes, scope: Scope) -> Order | bytes:
        body = decode(ChatBody, raw)
        model = known(body.model)
        if not body.messages:
            return _loaded(body, {"message": {"role": "assistant", "content": ""}})
        return lines.order(ask_chat(body, model, Visit.of(scope)), body, model, lines.message)

    def generated(raw: bytes, scope: Scope) -> Order | bytes:
        body = decode(TextRequest, raw)
        model = known(body.model)
        if not body.prompt:
            return _loaded(body, {"response": ""})
        return lines.order(ask_text(body, model, Visit.of(scope)), body, model, lines.response)

    async def show(raw: bytes, scope: Scope) -> dict[str, Any]:
        body = decode(Named, raw)
        model = known(body.model or body.name)
        info = {"general.architecture": "millrace", "millrace.context_length": model.max_len}
        if model.vectors:
            info["millrace.embedding_length"] = model.vectors
        return {
            "modelfile": f"FROM {model.name}\n",
            "parameters": "",
            "template": "",
            "details": _details(model),
            "model_info": info,
            "capabilities": _able(model),
            "modified_at": rfc3339(model.since),
        }

    async def pull(raw: bytes, scope: Scope) -> msgspec.Raw:
        body = decode(Named, raw)
        name = body.model or body.name
        try:
            known(name)
        except Failure:
            raise Failure(
                Code.MODEL_NOT_FOUND,
                f"The model '{name[:200]}' is not served here. Whoever runs this server gets it with"
                " `millrace model pull` and serves it with `millrace up --model`.",
            ) from None
        return SUCCESS

    async def embedded(raw: bytes, scope: Scope) -> dict[str, Any]:
        body = decode(embed.Body, raw)
        return await embed.several(counter.desk, known(body.model), body, Visit.of(scope))

    async def embedded_one(raw: bytes, scope: Scope) -> dict[str, Any]:
        body = decode(embed.OneBody, raw)
        return await embed.one(counter.desk, known(body.model), body, Visit.of(scope))

    async def tags(scope: Scope, receive: Receive, send: Send) -> None:
        models = [_tag(model) for model in counter.desk.models()]
        await told({"models": models})(scope, receive, send)

    async def running(scope: Scope, receive: Receive, send: Send) -> None:
        models = [
            _tag(model) | {"expires_at": NEVER, "size_vram": 0, "context_length": model.max_len}
            for model in counter.desk.models()
        ]
        await told({"models": models})(scope, receive, send)

    return [
        at("GET", "/", _hello),
        at("POST", "/api/chat", counter.generating(chatted)),
        at("POST", "/api/generate", counter.generating(generated)),
        at("POST", "/api/show", counter.telling(show)),
        at("POST", "/api/pull", counter.telling(pull)),
        at("POST", "/api/embed", counter.telling(embedded)),
        at("POST", "/api/embeddings", counter.telling(embedded_one)),
        at("GET", "/api/tags", tags),
        at("GET", "/api/ps", running),
        at("GET", "/api/version", told({"version": VERSION})),
    ]


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    """A client of Ollama wants to read these words, a person the page."""
    if browser(scope):
        await reply(send, 307, b"", (b"location", b"/ui"))
    else:
        await reply(send, 200, RUNNING, (b"content-type", b"text/plain; charset=utf-8"))


def _tag(model: Model) -> dict[str, Any]:
    return {
        "name": model.name + LATEST,
        "model": model.name + LATEST,
        "modified_at": rfc3339(model.since),
        "size": 0,  # a gateway does not have the files
        "digest": hashlib.sha256(f"{model.name}\n{model.max_len}".encode()).hexdigest(),
        "details": _details(model),
        "capabilities": _able(model),
    }


def _able(model: Model) -> list[str]:
    if model.vectors:
        return ["embedding"]
    voice = model.voice
    return ["completion", *(["tools"] if voice.calls else []), *(["thinking"] if voice.reasoning else [])]


def _details(model: Model) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "onnx",
        "family": model.name,
        "families": [model.name],
        "parameter_size": "",
        "quantization_level": "",
    }


def _loaded(body: Body, empty: dict[str, Any]) -> bytes:
    """The answer to a request that says nothing: it would only have had the model loaded."""
    if body.keep_alive in (0, "0", "0s", "0m"):
        raise refused("keep_alive", "'keep_alive' is 0: a model is never unloaded here.")
    opening = {"model": body.model, "created_at": rfc3339(time.time())}
    return msgspec.json.encode({**opening, **empty, "done": True, "done_reason": "load"})
