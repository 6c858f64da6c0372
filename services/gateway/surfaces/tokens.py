"""`/tokenize` and `/detokenize`, as vLLM has them: what a tokenizer makes of a prompt, and back."""

import struct
from typing import Annotated, Any, Literal

from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope
from msgspec import Meta, Raw, Struct

from millrace.messages import Chat, Decode, Encode, Encoded, Text
from services.gateway.http.body import decode, refused
from services.gateway.http.counter import Counter, at
from services.gateway.surfaces import chat
from services.gateway.surfaces.openai.wire import MAX_MESSAGES, TokenId
from services.gateway.visit import Visit

MAX_TOKENS = 1 << 20
"""As bytes they fit a message of the bus, and no context is longer."""


class Tokenize(Struct, forbid_unknown_fields=True, kw_only=True):
    """A prompt or a conversation; without a model's name, the only model's."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Raw], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: list[Raw] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: Literal[False] | None = None


class Detokenize(Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    async def tokenize(raw: bytes, scope: Scope) -> dict[str, Any]:
        body = decode(Tokenize, raw)
        model = counter.known(body.model or counter.only())
        wanted = encode(body, model.name, Visit.of(scope))
        made = await counter.desk.encode(model.name, wanted)
        return {
            "count": made.count,
            "max_model_len": model.max_len,
            "tokens": ids(made),
            "token_strs": made.texts if body.return_token_strs else None,
        }

    async def detokenize(raw: bytes, scope: Scope) -> dict[str, Any]:
        body = decode(Detokenize, raw)
        model = counter.known(body.model or counter.only())
        packed = struct.pack(f"<{len(body.tokens)}I", *body.tokens)
        return {"prompt": (await counter.desk.decode(model.name, Decode(packed))).text}

    return [
        at("POST", "/tokenize", counter.telling(tokenize)),
        at("POST", "/detokenize", counter.telling(detokenize)),
    ]


def encode(body: Tokenize, model: str, visit: Visit) -> Encode:
    want: Literal["ids", "texts"] = "texts" if body.return_token_strs else "ids"
    if body.messages is None:
        if body.prompt is None:
            raise refused("prompt", "Missing parameter: 'prompt' or 'messages'.")
        for name in ("tools", "add_generation_prompt", "chat_template_kwargs"):
            if getattr(body, name) is not None:
                raise refused(name, f"'{name}' goes with 'messages' alone.")
        return Encode(Text(body.prompt), want, add_special=body.add_special_tokens is not False)
    if body.prompt is not None:
        raise refused("prompt", "'prompt' and 'messages' were both sent: send only one of them.")
    if body.add_special_tokens:
        raise refused("add_special_tokens", "The chat template adds what 'messages' need: nothing else is.")
    fields = {"model": model, "messages": body.messages, "tools": body.tools}
    conversation = chat.ask(fields | {"chat_template_kwargs": body.chat_template_kwargs}, {}, visit).input
    assert isinstance(conversation, Chat)
    return Encode(conversation, want, add_generation_prompt=body.add_generation_prompt is not False)


def ids(made: Encoded) -> list[int]:
    return list(struct.unpack(f"<{made.count}I", made.ids))
