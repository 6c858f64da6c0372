"""`/openapi.json`: what each route takes, written from the same types that its bodies are read with."""

from typing import Any

import msgspec

from millrace import __version__
from services.gateway.surfaces import anthropic, embeddings, ollama, tokens
from services.gateway.surfaces.ollama import embed
from services.gateway.surfaces.openai import wire
from services.gateway.surfaces.responses import asked

PATH = "/openapi.json"

POSTS: dict[str, tuple[str, type[Any]]] = {
    "/v1/chat/completions": ("OpenAI's chat", wire.ChatBody),
    "/v1/completions": ("OpenAI's completion of a prompt", wire.TextBody),
    "/v1/responses": ("OpenAI's responses", asked.Body),
    "/v1/embeddings": ("OpenAI's embeddings, of a model that makes them", embeddings.Body),
    "/v1/messages": ("Anthropic's messages", anthropic.asked.Body),
    "/v1/messages/count_tokens": ("How many tokens messages are", anthropic.asked.Counted),
    "/tokenize": ("The token ids of a prompt or a conversation", tokens.Tokenize),
    "/detokenize": ("The text of token ids", tokens.Detokenize),
    "/api/chat": ("Ollama's chat", ollama.asked.ChatBody),
    "/api/generate": ("Ollama's completion of a prompt", ollama.asked.TextRequest),
    "/api/show": ("What a model is, for Ollama's clients", ollama.Named),
    "/api/pull": ("Whether a model is there, for Ollama's clients", ollama.Named),
    "/api/embed": ("Ollama's embeddings, of a model that makes them", embed.Body),
    "/api/embeddings": ("One of them, for older clients", embed.OneBody),
}

GETS: dict[str, str] = {
    "/v1/models": "The models that are served",
    "/v1/models/{name}": "One of them",
    "/v1/responses/{id}": "A response that was kept",
    "/v1/requests/{name}": "A request that is still live",
    "/api/tags": "The models that are served, for Ollama's clients",
    "/api/ps": "The models that are loaded, which are the same",
    "/api/version": "The version of Ollama whose API this is",
    "/livez": "Whether the gateway lives",
    "/readyz": "Whether requests can be answered",
}

DELETES: dict[str, str] = {
    "/v1/responses/{id}": "Forget a response",
    "/v1/requests/{name}": "End a request before its time",
}

RESPONSES = {
    "200": {"description": "The answer, streamed where the request asks for it"},
    "4XX": {"description": "What is wrong with the request, in the form of its surface"},
    "5XX": {"description": "What went wrong here, or that it is too much now"},
}


def document() -> bytes:
    kinds = {kind for _, kind in POSTS.values()}
    ordered = sorted(kinds, key=lambda kind: (kind.__module__, kind.__name__))
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    of = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, (summary, kind) in POSTS.items():
        content = {"application/json": {"schema": of[kind]}}
        operation = _operation(path, summary) | {"requestBody": {"required": True, "content": content}}
        paths.setdefault(path, {})["post"] = operation
    for method, found in (("get", GETS), ("delete", DELETES)):
        for path, summary in found.items():
            paths.setdefault(path, {})[method] = _operation(path, summary)
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "Millrace", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    # Types of one name have their module's before it: where that lies is nothing to a reader.
    raw = msgspec.json.encode(whole)
    return raw.replace(b"services.gateway.surfaces.", b"").replace(b"services.gateway.", b"")


def _operation(path: str, summary: str) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    given = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    return {"summary": summary, "parameters": given, "responses": RESPONSES}
