"""`/v1/responses` through the OpenAI client, sync and async, and its events as they come."""

import json
import re
import time
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.kit.service import Service
from train.facts import WEATHER_TOOL

WEATHER: Any = {"type": "function", **WEATHER_TOOL["function"]}
STILL: Any = {"model": "demo", "temperature": 0}
ENDLESS: Any = {
    "model": "demo",
    "input": "Tell me about water mills.",
    "extra_body": {"ignore_eos": True},
    "max_output_tokens": 4000,
}


def essence(response: Any) -> Any:
    """What two answers to the same request have in common."""
    made = json.loads(response.model_dump_json(exclude={"id", "created_at", "completed_at", "store"}))
    made["usage"].pop("input_tokens_details", None)
    for item in made["output"]:
        del item["id"]
        item.pop("call_id", None)
        item.pop("parsed_arguments", None)
        for part in item.get("content") or ():
            part.pop("parsed", None)
    return made


def test_a_response(client: OpenAI) -> None:
    """Its text, its status, what it repeats of the request and what it cost."""
    made = client.responses.create(**STILL, input="What is the capital of France?", metadata={"a": "b"})
    (item,) = made.output

    assert "Paris" in made.output_text
    assert ("completed", "message", "completed") == (made.status, item.type, item.status)
    assert ({"a": "b"}, 0.0, "auto", []) == (made.metadata, made.temperature, made.tool_choice, made.tools)
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made.usage.input_tokens_details.cached_tokens >= 0
    assert made.error is None and made.incomplete_details is None


@pytest.mark.parametrize(
    "more",
    [
        {"input": "What is the capital of France?"},
        {"input": "What is the capital of France?", "temperature": 1.5, "extra_body": {"seed": 5}},
        {"input": "What is the capital of France?", "max_output_tokens": 2},
        {"input": "What is the weather in Rome?", "tools": [WEATHER]},
        {"input": [{"role": "user", "content": "Who are you?"}], "instructions": "Be brief."},
    ],
)
def test_streamed_and_whole_are_the_same(client: OpenAI, more: dict[str, Any]) -> None:
    """The last event has the response that the whole answer is, and the SDK adds the events up to it."""
    whole = client.responses.create(**STILL | more)
    with client.responses.stream(**STILL | more) as stream:
        last: Any = list(stream)[-1]
    chunks: Any = list(client.responses.create(**STILL | more, stream=True))

    assert essence(whole) == essence(last.response) == essence(chunks[-1].response)
    assert list(range(len(chunks))) == [chunk.sequence_number for chunk in chunks]


async def test_the_asynchronous_client(service: Service) -> None:
    """Its deltas are the text."""
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
        stream = await client.responses.create(**STILL, input="Who are you?", stream=True)
        text = "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])
        whole = await client.responses.create(**STILL, input="Who are you?")

    assert whole.output_text == text


def events(service: Service, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    with httpx.stream("POST", f"{service.url}/v1/responses", json=body | {"stream": True}) as response:
        return parsed(response.read())


def parsed(raw: bytes) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for event in raw.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_the_order_of_events(service: Service) -> None:
    """Each with its number and its name, from created to completed, and no [DONE]."""
    found = events(service, **STILL, input="What is the capital of France?")
    names = [name.removeprefix("response.") for name, _ in found]
    deltas = names.count("output_text.delta")

    assert [name for name, _ in found] == [data["type"] for _, data in found]
    assert ["created", "in_progress", "output_item.added", "content_part.added"] == names[:4]
    assert ["output_text.delta"] * deltas == names[4:-4]
    assert ["output_text.done", "content_part.done", "output_item.done", "completed"] == names[-4:]
    assert list(range(len(found))) == [data["sequence_number"] for _, data in found]
    assert deltas > 1


def test_a_tool_is_called_and_its_result_told(client: OpenAI) -> None:
    """By the SDK's own items sent back, and by the id of the response that they are from."""
    asked = "What is the weather in Rome?"
    made = client.responses.create(**STILL, input=asked, tools=[WEATHER])
    (call,) = made.output
    assert call.type == "function_call"
    result = json.dumps({"city": "Rome", "temperature": 21, "unit": "celsius", "sky": "sunny"})
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": result}
    turns: Any = [{"role": "user", "content": asked}, call, output]
    told = client.responses.create(**STILL, input=turns, tools=[WEATHER])
    followed = client.responses.create(**STILL, input=[output], tools=[WEATHER], previous_response_id=made.id)

    assert ("get_weather", {"city": "Rome"}) == (call.name, json.loads(call.arguments))
    assert "21" in told.output_text
    assert told.output_text == followed.output_text
    assert told.usage and followed.usage and told.usage.input_tokens == followed.usage.input_tokens


def test_a_conversation_goes_on(client: OpenAI) -> None:
    """A response that follows another reads all that was said; instructions are of one response alone."""
    first = client.responses.create(**STILL, input="Who are you?", instructions="You are a mill.")
    second = client.responses.create(
        **STILL, input="What is the capital of France?", previous_response_id=first.id
    )
    alone = client.responses.create(
        **STILL,
        input=[
            {"role": "user", "content": "Who are you?"},
            *first.output,
            {"role": "user", "content": "What is the capital of France?"},
        ],
    )

    assert first.id == second.previous_response_id
    assert alone.output_text == second.output_text
    assert alone.usage and second.usage and alone.usage.input_tokens == second.usage.input_tokens


def test_it_can_be_asked_for_again(client: OpenAI) -> None:
    """Whole, as a stream, as the rest of one; until it is deleted. What is not to be stored is not, nor are a
    request's items."""
    made = client.responses.create(**STILL, input="Who are you?", stream=True)
    told: Any = list(made)
    id = told[-1].response.id
    again = client.responses.retrieve(id)
    streamed = list(client.responses.retrieve(id, stream=True))
    rest = list(client.responses.retrieve(id, stream=True, starting_after=5))
    hidden = client.responses.create(**STILL, input="Who are you?", store=False)
    with pytest.raises(openai.BadRequestError, match="is not kept as items"):
        client.responses.input_items.list(id)
    client.responses.delete(id)

    assert told[-1].response == again
    assert told == streamed
    assert told[6:] == rest
    for gone in (id, hidden.id):
        with pytest.raises(openai.NotFoundError, match="kept for 60 minutes where it was made"):
            client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError, match="Send its conversation in 'input'"):
            client.responses.create(**STILL, input="a", previous_response_id=gone)


def test_it_can_be_cancelled(client: OpenAI) -> None:
    """While it is made: its stream ends in an error, never as completed; once it has ended it cannot be."""
    stream: Any = iter(client.responses.create(**ENDLESS, stream=True))
    begun = next(stream)
    seen = [next(stream) for _ in range(5)]
    following: Any = iter(client.responses.retrieve(begun.response.id, stream=True, starting_after=0))
    first = next(following)
    cancelled = client.responses.cancel(begun.response.id)
    rest, followed = list(stream), list(following)
    with pytest.raises(openai.BadRequestError, match="has ended"):
        client.responses.cancel(begun.response.id)

    assert "cancelled" == cancelled.status == client.responses.retrieve(begun.response.id).status
    assert "error" == rest[-1].type and "completed" not in {event.type for event in rest}
    assert seen[0] == first
    assert len(followed) >= 4


def test_one_whose_client_left_is_cancelled(client: OpenAI) -> None:
    """It is not made for nobody."""
    stream = client.responses.create(**ENDLESS, stream=True)
    begun: Any = next(iter(stream))
    stream.close()
    end = time.monotonic() + 60
    while (status := client.responses.retrieve(begun.response.id).status) == "in_progress":
        assert time.monotonic() < end
        time.sleep(0.05)

    assert "cancelled" == status


def test_a_tool_must_be_called(client: OpenAI) -> None:
    """Any of them, or this one, whatever was asked."""
    choices: Any = ["required", {"type": "function", "name": "get_weather"}]
    for choice in choices:
        made = client.responses.create(**STILL, input="Who are you?", tools=[WEATHER], tool_choice=choice)

        assert ["function_call"] == [item.type for item in made.output]


def test_a_format(client: OpenAI) -> None:
    """A schema holds; one that cannot be is the client's mistake, by its name."""
    schema: Any = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    schema["additionalProperties"] = False
    shape: Any = {"format": {"type": "json_schema", "name": "c", "schema": schema, "strict": True}}
    made = client.responses.create(**STILL, input="Who are you?", text=shape)
    shape["format"]["schema"] = {"type": "nonesuch"}
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**STILL, input="Who are you?", text=shape)

    assert json.loads(made.output_text)["city"] in ("Oslo", "Rome")
    assert "text.format" == refused.value.param


def test_no_embeddings(client: OpenAI) -> None:
    """A model that generates text makes none, and one that is not there is not found."""
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model="demo", input="a")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nonesuch", input="a")


def test_too_few_tokens(client: OpenAI) -> None:
    """An answer that was cut off says so, and why."""
    made = client.responses.create(**STILL, input="Who are you?", max_output_tokens=2)

    assert "incomplete" == made.status == made.output[0].status
    assert made.incomplete_details and "max_output_tokens" == made.incomplete_details.reason


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include[0]"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].function.name"),
        ({"tools": [{"type": "namespace", "name": "a", "tools": [WEATHER, WEATHER]}]}, "tools[0].tools[1]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_object"}}, "ignore_eos": True}, "ignore_eos"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ],
)
def test_what_is_wrong_is_named(service: Service, more: dict[str, Any], param: str) -> None:
    """A bad request is 400, a response that is not there 404, and the parameter is said, by no other API's
    name."""
    body = {"model": "demo", "input": "a"} | more
    response = httpx.post(f"{service.url}/v1/responses", json=body)
    error = response.json()["error"]

    assert (404 if param == "previous_response_id" else 400) == response.status_code
    assert param == error["param"]
    theirs = "'(messages|max_completion_tokens|response_format|reasoning_effort)"
    assert not re.search(theirs, error["message"])


@pytest.mark.parametrize(
    "query", ["stream=maybe", "starting_after=1", "stream=true&starting_after=-1", "nonesuch=1"]
)
def test_what_is_wrong_in_a_query_is_named(service: Service, client: OpenAI, query: str) -> None:
    """Here too."""
    id = client.responses.create(**STILL, input="Who are you?").id
    response = httpx.get(f"{service.url}/v1/responses/{id}?{query}")

    assert 400 == response.status_code
    assert response.json()["error"]["param"] in query
