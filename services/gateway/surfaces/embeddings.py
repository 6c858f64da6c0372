"""`/v1/embeddings` and `/pooling`: no model that makes any can be loaded yet, and the answer says so."""

from typing import Any

from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope
from msgspec import Struct

from services.gateway.body import decode, refused
from services.gateway.counter import Counter, at


class Body(Struct):
    """Whatever is asked of a model: it is not there."""

    model: str


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    async def embed(raw: bytes, scope: Scope) -> dict[str, Any]:
        model = counter.known(decode(Body, raw).model)
        raise refused("model", f"The model '{model.name}' generates text: it makes no embeddings.")

    return [at("POST", path, counter.telling(embed)) for path in ("/v1/embeddings", "/pooling")]
