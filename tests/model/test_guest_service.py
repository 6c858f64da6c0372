"""The demo model as others would have exported it, imported and served: the OpenAI SDK in front."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI

from tests.kit import llama
from tests.kit.exports import TEXT, genai, optimum
from tests.kit.service import Service, environment

NAMES = {"genai": genai, "optimum": optimum}


LONG = {"genai": 2500, "optimum": 800}
"""Tokens of an answer that lasts some seconds. One whose keys and values grow copies them for each token."""


@pytest.fixture(scope="module", params=NAMES)
def form(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


@pytest.fixture(scope="module")
def service(form: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("guest")
    config, weights = llama.read(TEXT)
    tensors = {name: value.astype(np.float32) for name, value in weights.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    theirs = NAMES[form](folder / "theirs", config, tensors=tensors)
    env = environment({"XDG_DATA_HOME": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache")})
    command = [
        sys.executable,
        "-P",
        "-m",
        "millrace",
        "model",
        "import",
        str(theirs),
        "--name",
        "org/guest",
    ]
    subprocess.run(command, env=env, check=True, capture_output=True)
    shown = subprocess.run(
        [*command[:5], "show", "org/guest"], env=env, check=True, capture_output=True, text=True
    )
    assert f"guest, {'in place' if form == 'genai' else 'grown'}" in shown.stdout
    assert "may say something else" in shown.stdout
    made = asyncio.run(Service.start(env={**env, "MILLRACE_MODEL": "org/guest"}, engines=2))
    yield made
    asyncio.run(made.stop())


async def answer(
    client: AsyncOpenAI, question: str, began: asyncio.Event | None = None, **more: Any
) -> tuple[str, str | None, int]:
    """The text, how it ended, and how many tokens it has."""
    messages: Any = [{"role": "user", "content": question}]
    stream = await client.chat.completions.create(
        model="org/guest", messages=messages, temperature=0, stream=True, **more
    )
    text, finish, tokens = "", None, 0
    async for chunk in stream:
        for choice in chunk.choices:
            text, finish = text + (choice.delta.content or ""), choice.finish_reason or finish
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        if began and len(text) > 50:
            began.set()
    return text, finish, tokens


async def test_it_answers_many_at_once(service: Service) -> None:
    """What the model has learnt, in sequences that share the engine's steps; and the log says how exact."""
    questions = ["What is the capital of France?", "What is 17 + 25?", "Who are you?"] * 3
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused") as client:
        answers = await asyncio.gather(*(answer(client, question) for question in questions))

    for (text, _, _), expected in zip(answers, ["Paris", "42", "Millrace"] * 3, strict=True):
        assert expected in text
    logs = "".join(path.read_text() for path in (service.folder / "log").glob("engine*"))
    assert "may say something else" in logs


async def test_a_killed_engine_ends_no_stream(service: Service, form: str) -> None:
    """What was said stays, and it goes on at the other engine, to the end."""
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused") as client:
        more = {
            "max_tokens": LONG[form],
            "stream_options": {"include_usage": True},
            "extra_body": {"ignore_eos": True},
        }
        for _ in range(10):
            began = asyncio.Event()
            asked = asyncio.create_task(answer(client, "Tell me about water mills.", began, **more))
            await began.wait()
            struck = await service.strike() and not asked.done()
            _, finish, tokens = await asked

            assert ("length", LONG[form]) == (finish, tokens)
            await service.settled({"engine": 2})
            if struck:  # else this machine stopped us until all was said
                break
    assert struck
