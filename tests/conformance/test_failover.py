"""What goes wrong in the midst of an answer, on every surface: a killed engine does not show, and time that
ran out is the surface's own error and the end of the stream."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.kit.service import Service

MILLS = "Tell me about water mills."
TURNS = [{"role": "user", "content": MILLS}]


def surfaces(tokens: int) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Where, what, and what only a good end says."""
    sized = {"seed": 3, "max_tokens": tokens}
    options = {"seed": 3, "num_predict": tokens}
    return {
        "chat": ("/v1/chat/completions", {"messages": TURNS, **sized}, '"length"'),
        "choices": ("/v1/chat/completions", {"messages": TURNS, "n": 3, **sized}, '"length"'),
        "text": ("/v1/completions", {"prompt": MILLS, "echo": True, "logprobs": 2, **sized}, '"length"'),
        "messages": ("/v1/messages", {"messages": TURNS, "max_tokens": tokens}, "message_stop"),
        "responses": (
            "/v1/responses",
            {"input": MILLS, "seed": 3, "max_output_tokens": tokens},
            "response.incomplete",
        ),
        "ollama": ("/api/chat", {"messages": TURNS, "options": options}, '"length"'),
        "generate": ("/api/generate", {"prompt": MILLS, "options": options}, '"length"'),
    }


SURFACES = surfaces(400)
LONG = surfaces(3500)

OWN = re.compile(
    r'"(id|item_id|created|created_at|completed_at|total_duration|prompt_eval_duration|eval_duration'
    r'|cached_tokens|input_tokens|cache_read_input_tokens)":("[^"]*"|\d+|null)'
)
"""What differs between two answers to the same request: the rest of their bytes must not."""

CHOICE = re.compile(r'"choices":\[\{"index":(\d)')


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    env = {"MILLRACE_MODEL": "sim", "MILLRACE_SIM_EOS": "0", "MILLRACE_SIM_STEP_MS": "4"}
    made = asyncio.run(Service.start(env=env, engines=2))
    yield made
    asyncio.run(made.stop())


async def lines(
    client: httpx.AsyncClient, surface: str, began: asyncio.Event | None = None, hurry_ms: int = 0
) -> list[str]:
    path, body, _ = (LONG if hurry_ms else SURFACES)[surface]
    hurry = {"x-request-timeout-ms": f"{hurry_ms}"} if hurry_ms else {}
    body = {"model": "sim", "stream": True, **body}
    if surface == "messages":  # it has no seed: the likeliest tokens
        body["temperature"] = 0
    said = []
    async with client.stream("POST", path, json=body, headers=hurry) as response:
        async for line in response.aiter_lines():
            said.append(OWN.sub(r'"\1":0', line))
            if began and len(said) == 60:
                began.set()
    if surface == "choices":  # whose turn it is may differ, what each says may not
        said.sort(key=lambda line: int(found[1]) if (found := CHOICE.search(line)) else 3)
    return said


async def test_a_killed_engine_changes_nothing(service: Service) -> None:
    """Answers on all surfaces at once go on, byte for byte, with an engine killed under them."""
    async with httpx.AsyncClient(base_url=service.url) as client:
        calm = await asyncio.gather(*(lines(client, surface) for surface in SURFACES))
        for _ in range(10):
            began = [asyncio.Event() for _ in SURFACES]
            disturbed = asyncio.gather(
                *(lines(client, surface, event) for surface, event in zip(SURFACES, began, strict=True))
            )
            await asyncio.gather(*(event.wait() for event in began))
            struck = await service.strike()

            assert calm == await disturbed
            await service.settled({"engine": 2})
            if struck:  # else this machine stopped us until all was said
                break
    for said, (_, _, good) in zip(calm, SURFACES.values(), strict=True):
        assert len(said) > 100 and good in "".join(said)
    assert struck


ERRORS: dict[str, Any] = {
    "chat": {"error": {"type": "timeout_error", "code": "deadline_exceeded", "param": None}},
    "choices": {"error": {"type": "timeout_error", "code": "deadline_exceeded", "param": None}},
    "text": {"error": {"type": "timeout_error", "code": "deadline_exceeded", "param": None}},
    "messages": {"type": "error", "error": {"type": "timeout_error"}},
    "responses": {"type": "error", "code": "deadline_exceeded", "param": None},
    "ollama": {},
    "generate": {},
}


@pytest.mark.parametrize("surface", SURFACES)
async def test_a_failure_in_the_midst(service: Service, surface: str) -> None:
    """Time that runs out ends the stream in the surface's error, and nothing says a good end."""
    async with httpx.AsyncClient(base_url=service.url) as client:
        for ms in (700, 1400, 2800, 5600):  # before the first token it is no stream that fails
            said = await lines(client, surface, hurry_ms=ms)
            if len(said) > 10:
                break
    data = [line.removeprefix("data: ") for line in said if line.removeprefix("data: ").startswith("{")]
    last = json.loads(data[-1])
    if surface == "responses":
        assert ("response.failed", "failed") == (last["type"], last["response"]["status"])
        last = json.loads(data[-2])
        del last["sequence_number"]
    told = last if surface == "responses" else last["error"]
    message = last.pop("error") if surface in ("ollama", "generate") else told.pop("message")

    assert ERRORS[surface] == last
    assert "deadline" in message
    assert not any(SURFACES[surface][2] in line or "[DONE]" in line for line in said)
    assert len(said) > 10
