"""Asks as OpenAI's clients make them, by the gateway's own reading and without HTTP; and what is refused."""

import json
from typing import Any

import pytest

from millrace.errors import Code, Failure
from services.gateway.desk import Ask
from services.gateway.surfaces.openai import admit, wire
from services.gateway.visit import Visit

VISIT = Visit()
HELLO = [{"role": "user", "content": "hello"}]


def chat(**params: Any) -> Ask:
    body = json.dumps({"model": "sim", "messages": HELLO} | params).encode()
    return admit.chat(wire.read(wire.ChatBody, body), VISIT)


def text(**params: Any) -> Ask:
    (ask,) = texts(**params)
    return ask


def texts(**params: Any) -> list[Ask]:
    body = json.dumps({"model": "sim", "prompt": "hello"} | params).encode()
    return admit.completion(wire.read(wire.TextBody, body), VISIT)


def refusal(raw: bytes) -> Failure:
    with pytest.raises(Failure) as caught:
        admit.chat(wire.read(wire.ChatBody, raw), VISIT)
    assert Code.INVALID_REQUEST == caught.value.code
    return caught.value


def with_literal(name: str, literal: str) -> bytes:
    """A body with a value that `json.dumps` would not write."""
    return f'{{"model": "sim", "messages": {json.dumps(HELLO)}, "{name}": {literal}}}'.encode()
