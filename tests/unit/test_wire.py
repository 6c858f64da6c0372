"""What the OpenAI routes read, and how they name what they do not."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.errors import Code, Failure
from services.gateway.desk import Ask
from services.gateway.http.body import decode
from services.gateway.surfaces.openai import wire
from services.gateway.surfaces.responses import asked as responses
from tests.kit.asks import HELLO, VISIT, chat, refusal, with_literal


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modalities", ["text", "audio"]),
    ],
)
def test_missing_features_are_refused(name: str, value: object) -> None:
    """A feature that is not there is refused by name, never left out in silence."""
    failure = refusal(json.dumps({"model": "sim", "messages": HELLO, name: value}).encode())

    assert (name, f"This value of '{name}' is not supported.") == (failure.param, failure.message)


def test_hints_for_others_change_nothing() -> None:
    """What clients of many services send along, of caches and of their own, asks for nothing else here."""
    marked = {"cache_control": {"type": "ephemeral"}}
    tool = {"type": "function", "function": {"name": "f"}}
    called = {
        "role": "assistant",
        "tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": "{}"}}],
    }
    part: dict[str, Any] = {"type": "text", "text": "hi"}
    heard = {"role": "tool", "tool_call_id": "call_1", "content": [part]}
    hinted = chat(
        seed=1,
        messages=[
            {**HELLO[0], **marked},
            called | {"provider_specific_fields": {"refusal": None}},
            heard | {"content": [part | marked | {"prompt_cache_breakpoint": {"mode": "explicit"}}]},
        ],
        tools=[tool | marked],
        prompt_cache_retention="24h",
        prompt_cache_options={"mode": "implicit", "ttl": "30m"},
        guided_decoding_backend="auto",
    )

    assert chat(seed=1, messages=[*HELLO, called, heard], tools=[tool]) == hinted


def test_hints_to_responses_change_nothing() -> None:
    """Reasoning is told in plain text whether or not it is wanted encrypted, or as short as may be."""

    def asked(content: dict[str, Any], **more: Any) -> Ask:
        said = [{"role": "user", "content": [{"type": "input_text", "text": "hi"} | content]}]
        body = decode(responses.Body, json.dumps({"model": "sim", "seed": 1, "input": said} | more).encode())
        return responses.ask(body, responses.turns(body), VISIT)

    hinted = asked(
        {"prompt_cache_breakpoint": {"mode": "explicit"}},
        include=["reasoning.encrypted_content"],
        reasoning={"summary": "auto"},
        prompt_cache_options={"mode": "explicit"},
    )

    assert asked({}) == hinted


NUMBERS = [
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "min_tokens",
    "n",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_p",
]

NOT_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    '"1"',
    "true",
    "[1]",
    "{}",
    "1" * 5000,
    "-1e30",
]


@pytest.mark.parametrize("literal", NOT_NUMBERS)
@pytest.mark.parametrize("name", NUMBERS)
def test_bad_numbers_are_named(name: str, literal: str) -> None:
    """What is no number of this parameter is refused with the parameter's name."""
    failure = refusal(with_literal(name, literal))

    assert name == failure.param


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("temperature", 0, 2),
        ("top_p", 0, 1),
        ("top_k", -1, 2**31 - 1),
        ("seed", -(2**63), 2**63 - 1),
        ("max_tokens", 1, 2**31 - 1),
        ("max_completion_tokens", 1, 2**31 - 1),
        ("min_tokens", 0, 2**31 - 1),
        ("min_p", 0, 1),
        ("presence_penalty", -2, 2),
        ("frequency_penalty", -2, 2),
    ],
)
def test_bounds(name: str, least: int, most: int) -> None:
    """Both bounds are taken, and what is just beyond them is not."""
    beyond = [refusal(with_literal(name, str(value))).param for value in (least - 1, most + 1)]

    assert [name, name] == beyond
    chat(**{name: least})
    chat(**{name: most})


@given(
    st.sampled_from(NUMBERS),
    st.one_of(
        st.floats(), st.integers(), st.text(max_size=5), st.booleans(), st.lists(st.integers(), max_size=2)
    ),
)
def test_any_value_is_taken_or_named(name: str, value: object) -> None:
    """Whatever stands for a number, the answer is an ask of sane numbers or a refusal with that name."""
    try:
        ask = chat(**{name: value})
    except Failure as failure:
        assert name == failure.param
    else:
        assert math.isfinite(ask.sampling.temperature) and 0 <= ask.sampling.temperature <= 2
        assert 0 < ask.sampling.top_p <= 1
        assert 0 <= ask.sampling.seed < 2**63


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_is_taken_or_refused(value: object) -> None:
    """No JSON makes anything but a refusal."""
    for raw in (json.dumps(value).encode(), json.dumps({"model": "sim", "messages": value}).encode()):
        refusal(raw)


@given(st.binary(max_size=64))
def test_any_bytes_are_refused(raw: bytes) -> None:
    """Nor do bytes that are not even JSON."""
    refusal(raw)


@pytest.mark.parametrize("name", ["messages", "prediction", "chat_template_kwargs", "tools", "unknown"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json_is_refused(name: str, opening: str) -> None:
    """Deep nesting is refused wherever it is, ignored parameters included."""
    failure = refusal(with_literal(name, opening * 200_000))

    assert Code.INVALID_REQUEST == failure.code


def test_a_refusal_is_short() -> None:
    """However long a value was, it is not sent back."""
    role = refusal(json.dumps({"model": "sim", "messages": [{"role": "x" * 9_000}]}).encode())

    assert ("messages[0].role", True) == (role.param, len(role.message) < 200)


def test_template_arguments_are_shallow() -> None:
    """What is decoded again further on may not be deep there either."""
    nested: dict[str, Any] = {}
    for _ in range(wire.MAX_DEPTH + 1):
        nested = {"a": nested}

    assert (
        "chat_template_kwargs"
        == refusal(
            json.dumps({"model": "sim", "messages": HELLO, "chat_template_kwargs": nested}).encode()
        ).param
    )
    chat(chat_template_kwargs=nested["a"])


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"{}", "model"),
        (b'{"model": "sim"}', "messages"),
        (b'{"model": null, "messages": []}', "model"),
        (b'{"model": "sim", "messages": []}', "messages"),
        (with_literal("tempreature", "1"), "tempreature"),
        (with_literal("stop", '""'), "stop"),
        (with_literal("logit_bias", '{"five": 1}'), "logit_bias"),
        (with_literal("logit_bias", '{"-5": 1}'), "logit_bias"),
        (with_literal("logit_bias", '{"5": 100.5}'), "logit_bias[...]"),
        (with_literal("logit_bias", json.dumps({str(i): 1 for i in range(1025)})), "logit_bias"),
        (with_literal("stop", '["a", ""]'), "stop[1]"),
        (with_literal("stop", json.dumps(["a"] * 17)), "stop"),
        (with_literal("stop_token_ids", "[1, -1]"), "stop_token_ids[1]"),
        (with_literal("stream_options", '{"include_usage": true}'), "stream_options"),
        (with_literal("messages", '[{"role": "user"}]'), "messages[0].content"),
        (with_literal("messages", '[{"role": "user", "content": "a", "x": 1}]'), "messages[0].x"),
        (with_literal("messages", '[{"content": "a"}]'), "messages[0].role"),
        (with_literal("messages", '[{"role": "robot", "content": "a"}]'), "messages[0].role"),
        (
            with_literal("messages", '[{"role": "user", "content": [{"type": "text"}]}]'),
            "messages[0].content[0].text",
        ),
        (b"nonsense", None),
    ],
)
def test_the_refusal_names_the_parameter(raw: bytes, param: str | None) -> None:
    """The error's `param` is the parameter at fault, as a path where it is inside another."""
    assert param == refusal(raw).param


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "x"}},
    ],
)
def test_media_parts_are_refused(part: dict[str, Any]) -> None:
    """Images, sound and files are refused where they stand."""
    content = [{"type": "text", "text": "see"}, part]
    failure = refusal(
        json.dumps({"model": "sim", "messages": [{"role": "user", "content": content}]}).encode()
    )

    assert "messages[0].content[1]" == failure.param
    assert part["type"] in failure.message
