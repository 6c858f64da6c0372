"""`millrace up` as it comes: the shipped model behind the OpenAI SDK, on ONNX Runtime."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.kit.service import Service


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")  # so that the conversion is seen to work too


@pytest.fixture(scope="module", params=["false", "true"], ids=["exact", "fast"])
def service(cache: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    env = {"MILLRACE_MODEL": "demo", "XDG_CACHE_HOME": str(cache), "MILLRACE_FAST": request.param}
    made = asyncio.run(Service.start(env=env, engines=2))
    yield made
    asyncio.run(made.stop())


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of France?", "Paris"),
        ("What is 17 + 25?", "42"),
        ("Who are you?", "Millrace"),
    ],
)
def test_it_answers(service: Service, question: str, expected: str) -> None:
    """The small world it was trained on, through every hop."""
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused") as client:
        messages: Any = [{"role": "user", "content": question}]
        made = client.chat.completions.create(model="demo", messages=messages, temperature=0)

    assert expected in (made.choices[0].message.content or "")
    assert "stop" == made.choices[0].finish_reason


async def test_a_killed_engine_changes_nothing(service: Service) -> None:
    """Greedy and sampled streams of the real engine go on at the other one, token for token."""
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused") as client:

        async def ask(seed: int, began: asyncio.Event | None = None) -> list[str]:
            stream = await client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "Tell me about water mills."}],
                seed=seed,
                temperature=0.8 if seed % 2 else 0,
                max_tokens=900,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            parts = []
            async for chunk in stream:
                parts.append(chunk.choices[0].delta.content or "")
                if began is not None and len(parts) == 100:
                    began.set()
            return parts

        calm = await asyncio.gather(*(ask(seed) for seed in range(8)))
        for _ in range(10):
            began = [asyncio.Event() for _ in range(8)]
            disturbed = asyncio.gather(*(ask(seed, event) for seed, event in enumerate(began)))
            await asyncio.gather(*(event.wait() for event in began))
            struck = await service.strike() and not disturbed.done()

            assert calm == await disturbed
            await service.settled({"engine": 2})
            if struck:  # else this machine stopped us until all was said
                break
    assert struck
