"""Hundreds of requests as nobody would write them: told as they come or whole, it is the same answer.

And so it stays when engines are killed all the while.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest

from tests.kit.client import Answer, ask
from tests.kit.service import Service

COUNT = 150
AT_ONCE = 12
PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = asyncio.run(Service.start(env={"MILLRACE_SIM_STEP_MS": "2"}, engines=2))
    yield made
    asyncio.run(made.stop())


def generated(seed: int) -> tuple[str, dict[str, Any]]:
    r = Random(seed)
    surface = r.choice(["chat", "text"])
    body: dict[str, Any] = {"model": "sim", "seed": seed, "max_tokens": r.randint(1, 60)}
    body["return_token_ids"] = True
    words = ["mill"] * r.randint(1, 50)
    if surface == "chat":
        body["messages"] = [{"role": "user", "content": " ".join(words)}]
    else:
        ids = [r.randrange(300, 2000) for _ in range(r.randint(1, 30))]
        body["prompt"] = r.choice([" ".join(words), ids, ["a", "b c"], [ids, ids[:1]]])
    wishes: dict[str, list[Any]] = {
        "n": [2, 3],
        "temperature": [0, 0.5, 1.5, 2],
        "top_p": [0, 0.3, 0.95],
        "top_k": [-1, 1, 7, 100],
        "min_p": [0.01, 0.5],
        "presence_penalty": [-1, 1.2],
        "frequency_penalty": [-0.5, 2],
        "repetition_penalty": [0.7, 1.3],
        "logit_bias": [{str(r.randrange(300, 2000)): r.choice([-100, 9, 12]) for _ in range(5)}],
        "stop": ["e", ["th", "ing", "a b"]],
        "min_tokens": [1],
        "ignore_eos": [True],
        "include_stop_str_in_output": [True],
        "skip_special_tokens": [False],
    }
    for name, values in wishes.items():
        if r.random() < 0.3:
            body[name] = r.choice(values)
    if r.random() < 0.5:
        body |= (
            {"logprobs": True, "top_logprobs": r.randint(0, 20)}
            if surface == "chat"
            else {"logprobs": r.randint(0, 5)}
        )
    if surface == "text" and r.random() < 0.3:
        body["echo"] = True
    return PATHS[surface], body


def of_chunks(answer: Answer) -> dict[str, Any]:
    """What the chunks add up to, in the form of a whole answer."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in answer.chunks:
        for told in chunk["choices"]:
            choice = choices.setdefault(told["index"], {"text": "", "ids": [], "odds": {}, "finish": []})
            choice["text"] += told.get("text") or told.get("delta", {}).get("content") or ""
            choice["ids"] += told.get("token_ids", [])
            for name, value in (told["logprobs"] or {}).items():
                choice["odds"][name] = choice["odds"].get(name, []) + (value or [])
            choice["finish"] += [told["finish_reason"]] if told["finish_reason"] else []
    return {"choices": choices, "usage": answer.usage}


def of_whole(answer: Answer) -> dict[str, Any]:
    body = json.loads(answer.body)
    choices = {
        told["index"]: {
            "text": told["text"] if "text" in told else told["message"]["content"],
            "ids": told["token_ids"],
            "odds": {name: value or [] for name, value in (told["logprobs"] or {}).items()},
            "finish": [told["finish_reason"]],
        }
        for told in body["choices"]
    }
    return {"choices": choices, "usage": body["usage"]}


async def differing(service: Service, first: int) -> dict[int, Any]:
    """By seed: what was said in the one way and not in the other."""
    gate = asyncio.Semaphore(AT_ONCE)
    wrong: dict[int, Any] = {}

    async def one(seed: int) -> None:
        path, body = generated(seed)
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with gate:
            whole, told = await asyncio.gather(
                ask(service.url, body, path=path), ask(service.url, streamed, path=path)
            )
        if whole.status != 200 or told.failure:
            wrong[seed] = whole.body[:300], told.failure
            return
        expected, actual = of_whole(whole), of_chunks(told)
        for made in (expected, actual):
            made["usage"].pop("prompt_tokens_details", None)  # what was cached depends on who came first
        if expected != actual:
            wrong[seed] = body, expected, actual

    async with asyncio.timeout(600):
        await asyncio.gather(*(one(seed) for seed in range(first, first + COUNT)))
    return wrong


async def test_streamed_and_whole_are_the_same_answer(service: Service) -> None:
    """Text, tokens, log probabilities, reasons and usage, for each choice."""
    assert {} == await differing(service, 0)


@asynccontextmanager
async def killing(service: Service) -> AsyncIterator[list[int]]:
    """An engine dies every now and then, as long as the other is there."""
    killed: list[int] = []

    async def kill() -> None:
        while True:
            rows = [row for row in await service.rows("engine") if row.state == "ready"]
            if len(rows) == 2:
                row = max(rows, key=lambda row: row.load)
                os.kill(row.pid, signal.SIGKILL)
                killed.append(row.load)
            await asyncio.sleep(0.2)

    task = asyncio.create_task(kill())
    try:
        yield killed
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_the_same_while_engines_die(service: Service) -> None:
    """No request fails, and none says anything else in one way than in the other."""
    async with killing(service) as killed:
        wrong = await differing(service, COUNT)

    assert {} == wrong
    assert sum(load > 0 for load in killed) > 0
