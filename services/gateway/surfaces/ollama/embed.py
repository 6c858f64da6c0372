"""`/api/embed`, and `/api/embeddings` of older clients: vectors as Ollama tells them.

As there, what is too long is cut unless the client says no, and a request without a text is answered without
a vector: it would only have had the model loaded.
"""

import time
from typing import Annotated, Any

from msgspec import Meta, Struct

from services.gateway.desk import Desk, Model
from services.gateway.surfaces import vectors
from services.gateway.surfaces.ollama.asked import Options
from services.gateway.surfaces.ollama.lines import ns
from services.gateway.surfaces.vectors import MAX_TEXTS
from services.gateway.visit import Visit


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1)]
    input: Annotated[list[str], Meta(max_length=MAX_TEXTS)] | str = ""
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=0)] | None = None  # 0: all
    options: Options | None = None  # of how a text is made: a vector depends on none of them
    keep_alive: float | str | None = None


class OneBody(Struct, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1)]
    prompt: str = ""
    options: Options | None = None
    keep_alive: float | str | None = None


async def several(desk: Desk, model: Model, body: Body, visit: Visit) -> dict[str, Any]:
    texts = [body.input] if isinstance(body.input, str) else body.input
    asks = vectors.asks(
        model, texts if body.input else [], visit, dimensions=body.dimensions, cut=body.truncate is not False
    )
    found = await vectors.found(desk, asks, lambda vector: vector.told(body.dimensions))
    return {
        "model": body.model,
        "embeddings": found.told,
        "total_duration": ns(time.monotonic() - visit.began),
        "load_duration": 0,
        "prompt_eval_count": found.tokens,
    }


async def one(desk: Desk, model: Model, body: OneBody, visit: Visit) -> dict[str, Any]:
    asks = vectors.asks(model, [body.prompt] if body.prompt else [], visit, param="prompt", cut=True)
    found = await vectors.found(desk, asks, lambda vector: vector.told())
    return {"embedding": found.told[0] if found.told else []}
