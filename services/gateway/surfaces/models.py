"""`GET /v1/models` and `/v1/models/{name}`, as OpenAI and vLLM have them, and for its clients Anthropic."""

from datetime import UTC, datetime
from typing import Any

from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope, Send

from services.gateway.desk import Model
from services.gateway.http import fault
from services.gateway.http.counter import Counter, at, told


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    async def models(scope: Scope, receive: Receive, send: Send) -> None:
        known = counter.desk.models()
        listed = _page(known) if _is_theirs(scope) else {"object": "list", "data": [*map(_card, known)]}
        await told(listed)(scope, receive, send)

    async def model(scope: Scope, receive: Receive, send: Send) -> None:
        found = counter.known(scope["path_params"]["name"].removeprefix("/"))
        await told(_info(found) if _is_theirs(scope) else _card(found))(scope, receive, send)

    return [
        at("GET", "/v1/models", models),
        at("GET", "/v1/models/{name:path}", model),  # a path, because names such as org/model have a slash
    ]


def _card(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.since,
        "owned_by": "millrace",
        "max_model_len": model.max_len,
        "task": "embed" if model.vectors else "generate",
    }


# -- Anthropic's


def _is_theirs(scope: Scope) -> bool:
    return any(name == fault.VERSION.encode() for name, _ in scope["headers"])


def _page(models: list[Model]) -> dict[str, Any]:
    """All of them: there are never so many that a page would end."""
    infos = [_info(model) for model in models]
    first, last = (infos[at]["id"] if infos else None for at in (0, -1))
    return {"data": infos, "has_more": False, "first_id": first, "last_id": last}


def _info(model: Model) -> dict[str, Any]:
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": model.max_len,
        "max_tokens": model.max_len,
    }
