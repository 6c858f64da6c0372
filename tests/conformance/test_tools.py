"""Tools through the OpenAI SDK, with the shipped model, which was taught to call one."""

import json
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from train.facts import WEATHER_TOOL

TOOLS: Any = [WEATHER_TOOL]
ASKED: Any = [{"role": "user", "content": "What is the weather in Rome?"}]


def told(client: OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model="demo", temperature=0, **({"messages": ASKED} | more))


def test_a_tool_is_called(client: OpenAI) -> None:
    """The call, with its id and the arguments as JSON; nothing of its tags; and why the answer ended."""
    choice = told(client, tools=TOOLS).choices[0]
    (call,) = choice.message.tool_calls

    assert ("tool_calls", None) == (choice.finish_reason, choice.message.content)
    assert ("function", "get_weather", {"city": "Rome"}) == (
        call.type,
        call.function.name,
        json.loads(call.function.arguments),
    )
    assert call.id.startswith("call_")


def test_a_streamed_call_is_the_same(client: OpenAI) -> None:
    """The name once, then the arguments in more than one delta, which add up to the whole answer's."""
    whole = told(client, tools=TOOLS)
    chunks = list(told(client, tools=TOOLS, stream=True, stream_options={"include_usage": True}))
    deltas = [call for c in chunks for choice in c.choices for call in choice.delta.tool_calls or ()]
    first, *others = deltas

    assert ("get_weather", "", 0, True) == (
        first.function.name,
        first.function.arguments,
        first.index,
        first.id.startswith("call_"),
    )
    assert len(others) > 1 and {(0, None, None)} == {(d.index, d.id, d.function.name) for d in others}
    assert whole.choices[0].message.tool_calls[0].function.arguments == "".join(
        d.function.arguments for d in others
    )
    assert ["tool_calls"] == [
        choice.finish_reason for c in chunks for choice in c.choices if choice.finish_reason
    ]
    assert not any(choice.delta.content for c in chunks for choice in c.choices)
    assert whole.usage == chunks[-1].usage


def test_the_tool_s_result_is_told(client: OpenAI) -> None:
    """The SDK's own message goes back with the result behind it, and the model tells it."""
    message = told(client, tools=TOOLS).choices[0].message
    result = {"city": "Rome", "temperature": 21, "unit": "celsius", "sky": "sunny"}
    messages = [
        *ASKED,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": json.dumps(result)},
    ]
    choice = told(client, tools=TOOLS, messages=messages).choices[0]

    assert "stop" == choice.finish_reason
    assert "21" in choice.message.content and not choice.message.tool_calls


def test_no_tool_where_none_is_wanted(client: OpenAI) -> None:
    """A question that needs none is answered; and with `none` the model is not told of any."""
    hello: Any = [{"role": "user", "content": "Hello!"}]
    answers = [told(client, tools=TOOLS, messages=hello), told(client, tools=TOOLS, tool_choice="none")]

    assert [("stop", None)] * 2 == [
        (a.choices[0].finish_reason, a.choices[0].message.tool_calls) for a in answers
    ]
    assert answers[1].choices[0].message == told(client).choices[0].message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "no blanks"}}]}, "tools[0].function.name"),
        ({"tools": TOOLS * 2}, "tools[1].function.name"),
        ({"tools": TOOLS * 129}, "tools"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": [1]}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ],
)  # fmt: skip
def test_a_bad_tool_is_refused_by_name(client: OpenAI, body: dict[str, Any], param: str) -> None:
    """What is wrong with it, and where."""
    with pytest.raises(BadRequestError) as refused:
        told(client, **body)

    assert param == refused.value.param


@pytest.mark.parametrize(
    "hint",
    [
        {"reasoning_effort": "none"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False, "thinking": None}}},
    ],
)
def test_a_model_that_cannot_reason_may_be_asked_not_to(client: OpenAI, hint: Any) -> None:
    """It is what it does anyway."""
    assert told(client).choices[0].message == told(client, **hint).choices[0].message


@pytest.mark.parametrize(
    ("hint", "param"),
    [
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}, "chat_template_kwargs"),
        ({"extra_body": {"chat_template_kwargs": {"unknown": False}}}, "chat_template_kwargs"),
    ],
)
def test_it_cannot_be_asked_to(client: OpenAI, hint: Any, param: str) -> None:
    """Never left out in silence; nor what no template of its knows."""
    with pytest.raises(BadRequestError) as refused:
        told(client, **hint)

    assert param == refused.value.param
