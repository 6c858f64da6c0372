"""Every bad end of a request, as the OpenAI SDK tells it: the right exception, code and headers."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.kit.service import Service

HELLO: Any = [{"role": "user", "content": "Hello there, how are you?"}]
POISON = 666
PLACES = 3
LONG: Any = {"model": "sim", "messages": HELLO, "max_tokens": 3500, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    env = {
        "MILLRACE_SLOTS": "1",
        "MILLRACE_QUEUE": str(PLACES),
        "MILLRACE_DRAIN_S": "0.3",
        "MILLRACE_SIM_POISON_SEED": str(POISON),
    }
    made = asyncio.run(Service.start(env=env))
    yield made
    asyncio.run(made.stop())


@pytest.fixture
async def sdk(service: Service) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0, timeout=60) as made:
        yield made


def limited(ms: int, **more: str) -> dict[str, str]:
    return {"x-request-timeout-ms": str(ms), **more}


async def test_model_not_found(sdk: AsyncOpenAI) -> None:
    """NotFoundError, and the parameter's name."""
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.chat.completions.create(model="nonesuch", messages=HELLO)

    assert ("model_not_found", "model") == (caught.value.code, caught.value.param)


@pytest.mark.parametrize("prompt", ["word " * 5000, "word " * 500_000])
async def test_context_too_long(sdk: AsyncOpenAI, prompt: str) -> None:
    """BadRequestError with both numbers, however much too long it is."""
    with pytest.raises(openai.BadRequestError, match=r"context is 4096 tokens; .* \d{4,}") as caught:
        await sdk.completions.create(model="sim", prompt=prompt)

    assert ("context_length_exceeded", "prompt") == (caught.value.code, caught.value.param)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
async def test_answer_too_long(sdk: AsyncOpenAI, name: str) -> None:
    """The parameter that asked for it, by the name it was sent under."""
    asked: dict[str, Any] = {"model": "sim", name: 5000}
    with pytest.raises(openai.BadRequestError, match="and 5000 of answer") as caught:
        if name == "max_output_tokens":
            await sdk.responses.create(input="Hello", **asked)
        else:
            await sdk.chat.completions.create(messages=HELLO, **asked)

    assert ("context_length_exceeded", name) == (caught.value.code, caught.value.param)


async def test_queue_full(sdk: AsyncOpenAI) -> None:
    """RateLimitError with the time to wait, for those beyond the places that there are."""

    async def outcome() -> str:
        try:
            await sdk.chat.completions.create(**LONG, extra_headers=limited(5000))
        except openai.RateLimitError as error:
            assert int(error.response.headers["retry-after"]) >= 1
            assert "true" == error.response.headers["x-should-retry"]
            return str(error.code)
        except openai.InternalServerError as error:
            return str(error.code)
        return "fine"

    assert {"queue_full": 4, "deadline_exceeded": PLACES} == Counter(
        await asyncio.gather(*(outcome() for _ in range(PLACES + 4)))
    )


async def test_deadline(service: Service, sdk: AsyncOpenAI) -> None:
    """InternalServerError with 504 before the answer has begun; an error event and never [DONE] in it."""
    with pytest.raises(openai.InternalServerError) as whole:
        await sdk.chat.completions.create(**LONG, extra_headers=limited(500))
    for ms in (500, 1000, 2000, 4000):
        try:
            stream = await sdk.chat.completions.create(**LONG, stream=True, extra_headers=limited(ms))
        except openai.InternalServerError:  # it had not even begun
            continue
        break
    with pytest.raises(openai.APIError) as streamed:
        async for _ in stream:
            pass

    assert (504, "deadline_exceeded") == (whole.value.status_code, whole.value.code)
    assert "false" == whole.value.response.headers["x-should-retry"]
    assert "deadline_exceeded" == streamed.value.code


async def test_cancelled(service: Service, sdk: AsyncOpenAI) -> None:
    """A request that was ended by its id: 499 whole, an error event in a stream."""
    waiting = asyncio.create_task(
        sdk.chat.completions.create(**LONG, extra_headers=limited(20_000, **{"x-request-id": "whole"}))
    )
    async with asyncio.timeout(60):
        while (await sdk._client.delete("requests/whole")).status_code != 200:
            await asyncio.sleep(0.05)
    with pytest.raises(openai.APIStatusError) as whole:
        await waiting
    stream = await sdk.chat.completions.create(**LONG, stream=True)
    await sdk._client.delete(f"requests/{stream.response.headers['x-request-id']}")
    with pytest.raises(openai.APIError) as streamed:
        async for _ in stream:
            pass

    assert (499, "cancelled", "cancelled") == (whole.value.status_code, whole.value.code, streamed.value.code)


async def test_crashed_job(service: Service, sdk: AsyncOpenAI) -> None:
    """A request that ends its engine again and again is InternalServerError, and not to be sent again."""
    with pytest.raises(openai.InternalServerError) as caught:
        await sdk.chat.completions.create(model="sim", messages=HELLO, seed=POISON, max_tokens=5)
    await service.answers()

    assert (500, "job_crashed") == (caught.value.status_code, caught.value.code)
    assert "false" == caught.value.response.headers["x-should-retry"]


async def test_draining(service: Service, sdk: AsyncOpenAI) -> None:
    """What a gateway cannot finish in its grace is 503, to be sent again; in a stream an error event."""
    stream = await sdk.chat.completions.create(**LONG, stream=True)
    waiting = asyncio.create_task(
        sdk.chat.completions.create(**LONG, extra_headers={"x-request-id": "waits"})
    )
    async with asyncio.timeout(60):
        while (await sdk._client.get("requests/waits")).status_code != 200:
            await asyncio.sleep(0.05)
    for row in await service.rows("gateway"):
        os.kill(row.pid, signal.SIGTERM)
    with pytest.raises(openai.APIError) as streamed:
        async for _ in stream:
            pass
    with pytest.raises(openai.InternalServerError) as whole:
        await waiting

    assert "draining" == streamed.value.code
    assert (503, "draining") == (whole.value.status_code, whole.value.code)
    assert "true" == whole.value.response.headers["x-should-retry"]


async def test_the_bytes_of_a_failed_stream(service: Service) -> None:
    """After the error event nothing comes, and no [DONE]."""
    await service.answers()
    body = {"model": "sim", "messages": HELLO, "max_tokens": 3500, "ignore_eos": True, "stream": True}
    async with httpx.AsyncClient() as http:
        for ms in (400, 800, 1600, 3200):  # before the first token it is no stream that fails
            answer = await http.post(f"{service.url}/v1/chat/completions", json=body, headers=limited(ms))
            if answer.status_code == 200:
                break
    *events, end = answer.text.split("\n\n")

    assert (200, "") == (answer.status_code, end)
    assert events[-1].startswith('data: {"error":{') and '"deadline_exceeded"' in events[-1]
    assert len(events) > 2 and "[DONE]" not in answer.text
