"""The Messages API through Anthropic's own client, sync and async, and the bytes of its events."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic

from tests.kit.service import Service
from train.facts import WEATHER_TOOL

ASKED: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "name": WEATHER_TOOL["function"]["name"],
    "description": WEATHER_TOOL["function"]["description"],
    "input_schema": WEATHER_TOOL["function"]["parameters"],
}
ROME: Any = [{"role": "user", "content": "What is the weather in Rome?"}]


@pytest.fixture
def client(service: Service) -> Iterator[Anthropic]:
    with Anthropic(base_url=service.url, api_key="unused", max_retries=0) as made:
        yield made


SAMPLING = ("temperature", "top_p", "top_k")
"""What older versions of the client have as parameters, and newer ones only as fields of the body."""


def wanted(**more: Any) -> Any:
    return {"model": "demo", "max_tokens": 60, "messages": ASKED, "temperature": 0} | more


def asked(**more: Any) -> Any:
    """As the client's method takes it."""
    fields = wanted(**more)
    extra = fields.pop("extra_body", {})
    extra |= {name: fields.pop(name) for name in SAMPLING if name in fields}
    return {**fields, "extra_body": extra}


def events(service: Service, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every event as it comes over the wire, its name and its data."""
    with httpx.stream("POST", f"{service.url}/v1/messages", json=wanted(stream=True, **more)) as response:
        raw = response.read().decode()
    assert "text/event-stream; charset=utf-8" == response.headers["content-type"]
    found = []
    for event in raw.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_message(client: Anthropic) -> None:
    """Text, why it ended, and what it cost."""
    made = client.messages.create(**asked())

    assert "Paris" in made.content[0].text
    assert ("message", "assistant", "demo", "end_turn") == (
        made.type,
        made.role,
        made.model,
        made.stop_reason,
    )
    assert made.usage.output_tokens > 0 and made.usage.input_tokens > 0


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0.9, "top_k": 1, "max_tokens": 5},
        {"top_p": 0.0, "temperature": 1.0, "stop_sequences": ["Par", "zzz"]},
        {"messages": ROME, "tools": [WEATHER]},
        {"system": "Answer in one word."},
    ],
)
def test_streamed_and_whole_are_the_same(client: Anthropic, more: dict[str, Any]) -> None:
    """The SDK adds up the events to the message that the whole answer is."""
    whole = client.messages.create(**asked(**more))
    with client.messages.stream(**asked(**more)) as stream:
        streamed = stream.get_final_message()

    def essence(message: Any) -> Any:
        blocks = [block.model_dump(exclude={"id", "parsed_output", "citations"}) for block in message.content]
        spent = message.usage.input_tokens + message.usage.cache_read_input_tokens
        return blocks, message.stop_reason, message.stop_sequence, spent, message.usage.output_tokens

    assert essence(whole) == essence(streamed)


async def test_the_asynchronous_client(service: Service) -> None:
    """Its text stream is the text."""
    async with AsyncAnthropic(base_url=service.url, api_key="unused", max_retries=0) as client:
        async with client.messages.stream(**asked()) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        whole = await client.messages.create(**asked())

    assert whole.content[0].text == text


def test_the_order_of_events(service: Service) -> None:
    """Start, one block with its deltas, the reason with the usage, stop."""
    found = events(service)
    names = [name for name, _ in found]
    deltas = [data for name, data in found if name == "content_block_delta"]

    assert names == [data["type"] for _, data in found]
    assert ["message_start", "content_block_start"] == names[:2]
    assert ["content_block_stop", "message_delta", "message_stop"] == names[-3:]
    assert {"content_block_delta"} == set(names[2:-3]) and len(deltas) > 1
    assert "Paris" in "".join(data["delta"]["text"] for data in deltas)
    assert found[-2][1]["usage"]["output_tokens"] > len(deltas) - 1


def test_a_stop_sequence_is_named(client: Anthropic) -> None:
    """Which of them it was, and nothing of it in the text."""
    made = client.messages.create(**asked(stop_sequences=["zzz", "Paris"]))

    assert ("stop_sequence", "Paris") == (made.stop_reason, made.stop_sequence)
    assert "Paris" not in made.content[0].text


def test_too_few_tokens(client: Anthropic) -> None:
    """An answer that was cut off says so."""
    made = client.messages.create(**asked(max_tokens=2))

    assert ("max_tokens", 2) == (made.stop_reason, made.usage.output_tokens)


def test_a_tool_is_used_and_its_result_told(client: Anthropic) -> None:
    """The block has the input as an object; the SDK's own message goes back, and the result is told."""
    made = client.messages.create(**asked(messages=ROME, tools=[WEATHER]))
    (use,) = made.content
    result = {"city": "Rome", "temperature": 21, "unit": "celsius", "sky": "sunny"}
    answered = {"type": "tool_result", "tool_use_id": use.id, "content": json.dumps(result)}
    messages = [
        *ROME,
        {"role": "assistant", "content": made.content},
        {"role": "user", "content": [answered]},
    ]
    told = client.messages.create(**asked(messages=messages, tools=[WEATHER]))

    assert ("tool_use", "get_weather", {"city": "Rome"}) == (made.stop_reason, use.name, use.input)
    assert "21" in told.content[0].text
    assert "end_turn" == told.stop_reason


def test_a_streamed_tool_use(service: Service) -> None:
    """Its block begins empty, and its input comes as JSON in pieces."""
    found = events(service, messages=ROME, tools=[WEATHER])
    start = next(data for name, data in found if name == "content_block_start")
    deltas = [data["delta"] for name, data in found if name == "content_block_delta"]

    assert ("tool_use", "get_weather", {}) == (
        start["content_block"]["type"],
        start["content_block"]["name"],
        start["content_block"]["input"],
    )
    assert {"input_json_delta"} == {delta["type"] for delta in deltas}
    assert {"city": "Rome"} == json.loads("".join(delta["partial_json"] for delta in deltas))
    assert "tool_use" == found[-2][1]["delta"]["stop_reason"]


def test_a_tool_must_be_used(client: Anthropic) -> None:
    """Any of them, or this one, whatever was asked."""
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        made = client.messages.create(**asked(tools=[WEATHER], tool_choice=choice))

        assert ("tool_use", "get_weather") == (made.stop_reason, made.content[0].name)


def test_a_format(client: Anthropic) -> None:
    """A schema holds."""
    schema: Any = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    schema["additionalProperties"] = False
    made = client.messages.create(
        **asked(output_config={"format": {"type": "json_schema", "schema": schema}})
    )

    assert json.loads(made.content[0].text)["city"] in ("Oslo", "Rome")


def test_tokens_are_counted(client: Anthropic) -> None:
    """As many as a message with the same prompt says that it read, tools and system too."""
    prompt: Any = {"model": "demo", "messages": ROME, "system": "Be brief.", "tools": [WEATHER]}
    counted = client.messages.count_tokens(**prompt)
    usage = client.messages.create(**prompt, max_tokens=1).usage

    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 2}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "The"}]}, "messages[1]"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"extra_body": {"output_config": {"effort": "low"}}}, "'output_config.effort'"),
        ({"extra_body": {"container": "x"}}, "container"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"max_tokens": 9_000}, "4096"),
    ],
)
def test_what_is_wrong_is_named(client: Anthropic, more: dict[str, Any], named: str) -> None:
    """A bad request is the SDK's BadRequestError, in Anthropic's form, and says what was bad."""
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**asked(**more))
    body: Any = caught.value.body

    assert ("error", "invalid_request_error") == (body["type"], body["error"]["type"])
    assert named in body["error"]["message"]


def test_errors_have_this_form_everywhere(service: Service, client: Anthropic) -> None:
    """An unknown model, a missing field, a wrong method and a body that is no JSON."""
    with pytest.raises(anthropic.NotFoundError, match="nonesuch"):
        client.messages.create(**asked(model="nonesuch"))
    url = f"{service.url}/v1/messages"
    answers = [httpx.post(url, json={"model": "demo"}), httpx.get(url), httpx.post(url, content=b"{")]

    assert [400, 405, 400] == [answer.status_code for answer in answers]
    assert {"error"} == {answer.json()["type"] for answer in answers}
    assert all(answer.headers["request-id"] for answer in answers)


def test_the_models(client: Anthropic) -> None:
    """A page of them, and one by its name; the same path stays OpenAI's for who is no client of theirs."""
    page = client.models.list()
    (listed,) = page
    one = client.models.retrieve("demo")

    assert ("demo", "demo", False) == (page.first_id, page.last_id, page.has_more)
    assert listed == one
    assert ("model", "demo", "demo", "active") == (one.type, one.id, one.display_name, one.lifecycle)
    assert one.created_at.tzinfo and one.max_tokens == one.max_input_tokens
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("no-such")
    assert isinstance(caught.value.body, dict)
    assert ("error", "not_found_error") == (caught.value.body["type"], caught.value.body["error"]["type"])
