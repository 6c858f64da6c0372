"""Several answers to one request, through the OpenAI SDK: each is what it would have been alone, and they end
together."""

import asyncio
import math
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from services.gateway.surfaces.openai.admit import sibling_seed
from tests.kit.sdk import chatted, completed
from tests.kit.service import Service


def test_siblings_are_requests_of_their_own(client: OpenAI) -> None:
    """Each of n answers is what a request with its seed gives alone; the prompt is counted once."""
    made = chatted(client, n=4, temperature=1.6, logprobs=True, top_logprobs=2)
    alone = [
        chatted(client, seed=sibling_seed(5, i), temperature=1.6, logprobs=True, top_logprobs=2)
        for i in range(4)
    ]

    assert [0, 1, 2, 3] == [choice.index for choice in made.choices]
    for choice, one in zip(made.choices, alone, strict=True):
        expected = one.choices[0].model_copy(update={"index": choice.index})

        assert expected == choice
    assert len({choice.message.content for choice in made.choices}) > 1
    assert alone[0].usage.prompt_tokens == made.usage.prompt_tokens
    assert sum(one.usage.completion_tokens for one in alone) == made.usage.completion_tokens


def test_several_prompts_in_one_request(client: OpenAI, prompt: list[int]) -> None:
    """As if each had been asked by itself; all prompts are counted."""
    prompts = [prompt, prompt[:2], prompt[1:]]
    made = completed(client, prompts, n=2, max_tokens=8, temperature=1.3)
    alone = [completed(client, each, n=2, max_tokens=8, temperature=1.3) for each in prompts]

    assert [(i, c.token_ids) for i, c in enumerate(c for one in alone for c in one.choices)] == [
        (choice.index, choice.token_ids) for choice in made.choices
    ]
    assert sum(map(len, prompts)) == made.usage.prompt_tokens
    texts = completed(client, ["One", "Two"], max_tokens=2)
    assert [0, 1] == [choice.index for choice in texts.choices]


def test_best_of_keeps_the_likeliest(client: OpenAI, prompt: list[int]) -> None:
    """By the mean log probability of their tokens; all tokens are counted, those not told too."""
    wanted: dict[str, Any] = {"max_tokens": 10, "temperature": 1.8}
    everything = completed(client, prompt, n=5, logprobs=0, **wanted)
    best = completed(client, prompt, n=2, best_of=5, **wanted)

    def mean(choice: Any) -> float:
        told: list[float] = choice.logprobs.token_logprobs
        return math.fsum(told) / len(told)

    expected = sorted(everything.choices, key=mean, reverse=True)[:2]
    assert [choice.token_ids for choice in expected] == [choice.token_ids for choice in best.choices]
    assert [(0, None), (1, None)] == [(choice.index, choice.logprobs) for choice in best.choices]
    assert everything.usage.completion_tokens == best.usage.completion_tokens


def test_a_failed_sibling_is_a_failed_request(client: OpenAI) -> None:
    """A prompt among others that does not fit refuses all of them, and leaves nothing behind."""
    with pytest.raises(BadRequestError) as caught:
        completed(client, ["a", "word " * 9000, "b"], max_tokens=200)

    assert "context_length_exceeded" == caught.value.code
    assert completed(client, "a", max_tokens=2).usage.completion_tokens == 2


def test_a_client_that_leaves_leaves_nothing(service: Service, client: OpenAI) -> None:
    """All of its answers end, those too that were still in the queue."""
    stream = chatted(client, n=32, max_tokens=400, ignore_eos=True, stream=True)
    next(iter(stream))
    stream.close()

    async def idle() -> None:
        async with asyncio.timeout(60):
            while any(row.load for row in await service.ps() if row.role in ("gateway", "engine")):
                await asyncio.sleep(0.1)

    asyncio.run(idle())


def test_as_many_answers_as_there_may_be(client: OpenAI) -> None:
    """More than the engines have places for: some wait for others, and all come."""
    made = completed(client, "One", n=128, max_tokens=3, temperature=2, ignore_eos=True)

    assert list(range(128)) == [choice.index for choice in made.choices]
    assert 3 * 128 == made.usage.completion_tokens
