"""Answers of a given form, through the OpenAI SDK; and the same answers when an engine is killed midway."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import jsonschema_rs
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI, BadRequestError

from tests.kit.schemas import Schema, objects
from tests.kit.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED: Any = [{"role": "user", "content": "Say something."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z ]{40,80}$"},
        "tags": {"type": "array", "items": {"type": "integer"}, "minItems": 8, "maxItems": 20},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "tags", "ok"],
    "additionalProperties": False,
}
UNSAID = {key: value for key, value in PERSON.items() if key != "additionalProperties"}
STRICT = "tools[0].function.parameters"
LOOK = {"type": "function", "function": {"name": "look", "parameters": PERSON}}
WAIT = {"type": "function", "function": {"name": "wait"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    # Steps of 10 ms, so that there is time to kill somebody in the middle of an answer.
    made = await Service.start(env={"MILLRACE_SIM_STEP_MS": "10"}, engines=2)
    yield made
    await made.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(service: Service) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def strictly(schema: Schema) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}


async def told(client: AsyncOpenAI, **more: Any) -> Any:
    return await client.chat.completions.create(**({"model": "sim", "messages": ASKED} | more))


async def streamed(client: AsyncOpenAI, **more: Any) -> tuple[str, list[Any], str, int]:
    """The text, the calls, the reason for the end, and how many tokens; as the deltas add up."""
    text, finish = "", ""
    usage: Any = None
    calls: list[Any] = []
    options = {"include_usage": True}
    async for chunk in await told(client, stream=True, stream_options=options, **more):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or ():
                if call.index == len(calls):
                    calls.append([call.function.name, ""])
                calls[call.index][1] += call.function.arguments
    return text, calls, finish, usage.completion_tokens


def summed(answer: Any) -> tuple[str, list[Any], str, int]:
    choice = answer.choices[0]
    calls = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or ()]
    return choice.message.content or "", calls, choice.finish_reason, answer.usage.completion_tokens


def holds(schema: Schema, text: str) -> None:
    jsonschema_rs.validator_for(schema).validate(json.loads(text))


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(objects, min_size=16, max_size=16), st.integers(0, 2**32))
async def test_schemas_hold(client: AsyncOpenAI, several: list[Schema], seed: int) -> None:
    """Any schema, through every hop, beside others."""
    asked = [told(client, response_format=strictly(schema), seed=seed) for schema in several]
    for schema, answer in zip(several, await asyncio.gather(*asked), strict=True):
        assert "stop" == answer.choices[0].finish_reason
        holds(schema, answer.choices[0].message.content)


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        ({"structured_outputs": {"choice": ["ja", "nein"]}}, "ja|nein"),
        ({"structured_outputs": {"regex": "^[0-9]{4}-[0-9]{2}$"}}, "[0-9]{4}-[0-9]{2}"),
        ({"structured_outputs": {"grammar": 'start: "a" b\nb: /[0-9]{2}/'}}, "a[0-9]{2}"),
        ({"structured_outputs": {"json": {"enum": [1, 2]}}}, "1|2"),
        ({"guided_choice": ["ja"]}, "ja"),
        ({"guided_choice": ["ja"], "structured_outputs": {"choice": ["ja"]}}, "ja"),
        ({"guided_regex": "x{3}"}, "xxx"),
        ({"guided_json": '{"const": "y"}'}, '"y"'),
        ({"guided_grammar": "root ::= [a-c] [a-c]"}, "[abc]{2}"),
    ],
)
async def test_other_forms(client: AsyncOpenAI, body: dict[str, Any], pattern: str) -> None:
    """By vLLM's names, the new and the older; in both routes."""
    chat = await told(client, extra_body=body)
    text = await client.completions.create(model="sim", prompt="Say", max_tokens=100, extra_body=body)

    assert re.fullmatch(pattern, chat.choices[0].message.content)
    assert re.fullmatch(pattern, text.choices[0].text)
    assert "stop" == chat.choices[0].finish_reason == text.choices[0].finish_reason


async def test_json_object(client: AsyncOpenAI) -> None:
    """Some object, or the beginning of one where max_tokens ended it."""
    answer = (await told(client, response_format={"type": "json_object"}, max_tokens=40, seed=3)).choices[0]

    assert answer.message.content.lstrip().startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    else:
        assert "length" == answer.finish_reason


@pytest.mark.parametrize(
    ("choice", "more", "names"),
    [
        ("required", {}, {"look", "wait"}),
        ("required", {"parallel_tool_calls": False}, {"look", "wait"}),
        ({"type": "function", "function": {"name": "look"}}, {}, {"look"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "wait"}}],
                },
            },
            {},
            {"wait"},
        ),
    ],
)
async def test_a_call_is_made(client: AsyncOpenAI, choice: Any, more: Any, names: set[str]) -> None:
    """Where one must be, by a model that has never heard of tools; with arguments as they were described."""
    asked = [
        told(client, tools=[LOOK, WAIT], tool_choice=choice, seed=seed, max_tokens=300, **more)
        for seed in range(6)
    ]
    for answer in await asyncio.gather(*asked):
        text, calls, finish, _ = summed(answer)
        if finish == "length":  # it went on calling
            calls = calls[:-1]
        else:
            assert "tool_calls" == finish and calls
        assert "" == text and {name for name, _ in calls} <= names
        if more or names == {"look"}:
            assert 1 == len(calls)
        for name, arguments in calls:
            holds(PERSON if name == "look" else {"maxProperties": 0}, arguments)


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": strictly(UNSAID)},
        {"extra_body": {"guided_json": UNSAID}},
        {
            "tools": [{"type": "function", "function": {"name": "look", "parameters": UNSAID}}],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
            "parallel_tool_calls": False,
        },
    ],
)
async def test_what_is_not_listed_is_not_there(client: AsyncOpenAI, more: Any) -> None:
    """Where a schema says nothing of other properties, too."""
    asked = [told(client, seed=seed, max_tokens=500, **more) for seed in range(6)]
    for answer in await asyncio.gather(*asked):
        text, calls, _, _ = summed(answer)
        holds(PERSON, calls[0][1] if calls else text)


REQUESTS: list[dict[str, Any]] = [
    {"response_format": strictly(PERSON)},
    {"response_format": strictly(PERSON), "temperature": 0},
    {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False},
    {"extra_body": {"structured_outputs": {"regex": "([0-9]{3}-){30}[0-9]"}}},
    {"response_format": strictly(PERSON), "logprobs": True, "top_logprobs": 2},
]


async def test_streamed_is_whole(client: AsyncOpenAI) -> None:
    """Text, calls, the reason for the end and usage are the same both ways."""
    for seed in range(2):
        more = [{"seed": seed, "max_tokens": 500} | request for request in REQUESTS]
        whole = await asyncio.gather(*(told(client, **each) for each in more))
        parts = await asyncio.gather(*(streamed(client, **each) for each in more))

        assert [summed(answer) for answer in whole] == parts


async def test_a_killed_engine_changes_nothing(service: Service, client: AsyncOpenAI) -> None:
    """The other engine follows the grammars on from where they were: the same answers, to the byte."""
    more = [{"seed": seed, "max_tokens": 500} | request for seed in range(2) for request in REQUESTS]
    undisturbed = await asyncio.gather(*(streamed(client, **each) for each in more))
    for _ in range(10):
        running = [asyncio.ensure_future(streamed(client, **each)) for each in more]
        struck = await service.strike() and not all(each.done() for each in running)

        assert undisturbed == await asyncio.gather(*running)
        await service.settled({"engine": 2})
        if struck:  # else this machine stopped us until all was said
            break
    assert struck
    assert {"stop", "tool_calls"} == {finish for _, _, finish, _ in undisturbed}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": strictly({"not": {}})}, "response_format.json_schema.schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: foo"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"guided_json": "not json"}, "guided_json"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "a", "min_tokens": 3}, "min_tokens"),
        ({"tools": [{"function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]}, STRICT),
    ],
)
async def test_what_cannot_be_kept_to_is_refused(client: AsyncOpenAI, body: Any, param: str) -> None:
    """Before it is queued, and by name."""
    with pytest.raises(BadRequestError) as refused:
        await told(client, extra_body=body)

    assert param == refused.value.param
