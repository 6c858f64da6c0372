"""`/v1/embeddings`, as OpenAI has it."""

from typing import Annotated, Any, Literal

from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope
from msgspec import Meta, Struct

from services.gateway.http.body import decode, refused
from services.gateway.http.counter import Counter, at
from services.gateway.surfaces import vectors
from services.gateway.surfaces.openai.wire import TokenId
from services.gateway.surfaces.vectors import MAX_TEXTS
from services.gateway.visit import Visit


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    input: str | list[TokenId | str | list[TokenId]]  # a text or its tokens, or several
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None  # said to nobody


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    async def embed(raw: bytes, scope: Scope) -> dict[str, Any]:
        body = decode(Body, raw)
        model = counter.known(body.model)
        asks = vectors.asks(model, texts(body.input), Visit.of(scope), dimensions=body.dimensions)
        tell = vectors.Vector.packed if body.encoding_format == "base64" else vectors.Vector.told
        found = await vectors.found(counter.desk, asks, lambda vector: tell(vector, body.dimensions))
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": told}
                for index, told in enumerate(found.told)
            ],
            "model": model.name,
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        }

    return [at("POST", "/v1/embeddings", counter.telling(embed))]


def texts(given: str | list[int | str | list[int]]) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if not given:
        raise refused("input", "'input' is empty.")
    kind = type(given[0])
    if not all(isinstance(each, kind) for each in given):
        raise refused("input", "'input' mixes texts, tokens and lists of tokens.")
    several: list[Any] = [given] if kind is int else given
    if len(several) > MAX_TEXTS:
        raise refused("input", f"'input' has {len(several)} texts, more than {MAX_TEXTS}.")
    return several
