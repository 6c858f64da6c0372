"""The surfaces beside OpenAI's chat: what they ask for, and that streamed and whole they say the same."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.errors import Code, Failure
from millrace.messages import Chat, Text, Voice
from services.gateway.desk import Model, Piece
from services.gateway.http.body import decode
from services.gateway.speech import Chain, Speech
from services.gateway.speech.json_calls import Hermes
from services.gateway.speech.thinking import Thinking
from services.gateway.surfaces import anthropic, ollama
from services.gateway.surfaces.responses import asked, functions
from services.gateway.surfaces.responses.kept import Kept
from services.gateway.surfaces.responses.unfolding import Unfolding
from services.gateway.visit import Visit
from tests.kit.desk import ScriptedAnswer, said

THINKS = Model("m", 4096, 0, Voice("hermes", "qwen3"))
PLAIN = Model("m", 4096, 0)
SAID = (
    "<think>Hm, a mill.</think>Let me look.\n"
    '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    '<tool_call>{"name": "g", "arguments": {"é": ["}"]}}</tool_call>'
)
CALLS = [("f", {"a": 1}), ("g", {"é": ["}"]})]


def speech() -> Speech:
    return Speech(Chain(Thinking(begun=False), Hermes(lambda index: f"call_{index}")))


def cut(text: str, places: list[int]) -> list[Piece]:
    edges = sorted({0, len(text), *(place % len(text) for place in places)})
    return said(*(text[start:end] for start, end in pairwise(edges)))


def events(raw: bytes) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for event in raw.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


# What is asked


def claude(model: Model = THINKS, **more: Any) -> Any:
    fields = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]} | more
    return anthropic.asked.ask(decode(anthropic.asked.Body, json.dumps(fields).encode()), model, Visit())


def turns(ask: Any) -> list[dict[str, Any]]:
    assert isinstance(ask.input, Chat)
    found: list[dict[str, Any]] = json.loads(ask.input.messages)
    return found


def test_anthropic_s_blocks_are_turns() -> None:
    """System, thinking, uses and results each find their place, in their order."""
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    ask = claude(
        system=[{"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}}],
        tools=[{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        messages=[
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "yes"},
                    use,
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "bad", "is_error": True},
                    {"type": "text", "text": "so?"},
                ],
            },
        ],
    )

    function = {"name": "f", "arguments": '{"a":1}'}
    assert [
        {"role": "system", "content": "Be"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "yes",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "Error: bad", "tool_call_id": "t1"},
        {"role": "user", "content": "so?"},
    ] == turns(ask)


def test_anthropic_s_parameters() -> None:
    """Each is the same one of ours."""
    ask = claude(temperature=0.5, top_p=0.25, top_k=3, stop_sequences=["a"], thinking={"type": "disabled"})

    assert (9, ["a"], 0.5, 0.25, 3) == (
        ask.max_tokens,
        ask.stops,
        ask.sampling.temperature,
        ask.sampling.top_p,
        ask.sampling.top_k,
    )
    assert "none" == ask.input.effort
    assert "" == claude(PLAIN, thinking={"type": "disabled"}).input.effort


NOTHING: Any = {
    **dict.fromkeys(("billing_policy", "compaction", "container", "context_management", "diagnostics")),
    **dict.fromkeys(
        ("fallback_credit_token", "fallbacks", "inference_geo", "mcp_servers", "speed", "thread")
    ),
    "output_config": {"task_budget": None},
}


@pytest.mark.parametrize(
    "more",
    [
        NOTHING,
        {"context_management": {}, "mcp_servers": [], "fallbacks": [], "speed": "standard"},
        {"context_management": {"edits": []}, "inference_geo": "global"},
        {"tools": [{"name": "f", "input_schema": {}, "eager_input_streaming": True, "defer_loading": False}]},
    ],
)
def test_what_asks_for_nothing_is_taken(more: Any) -> None:
    """Of what Anthropic's client can send along, its beta's too."""
    assert 9 == claude(**more).max_tokens


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management.edits",
        ),
        ({"mcp_servers": [{"type": "url", "url": "https://example.org", "name": "n"}]}, "mcp_servers"),
        ({"fallbacks": "default"}, "fallbacks"),
        ({"compaction": {"type": "summarize"}}, "compaction"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"output_config": {"task_budget": {"type": "tokens", "total": 9}}}, "output_config.task_budget"),
    ],
)
def test_what_is_missing_here_is_refused_by_name(more: Any, named: str) -> None:
    """Never left out in silence."""
    with pytest.raises(Failure) as caught:
        claude(**more)

    assert (named, f"'{named}'" in caught.value.message) == (caught.value.param, True)


def test_ollama_s_results_find_their_calls() -> None:
    """By the tool's name, in order; calls without ids are given some."""
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call, {"function": {"name": "g", "arguments": {}}}, call]},
        {"role": "tool", "tool_name": "g", "content": "G"},
        {"role": "tool", "tool_name": "f", "content": "F1"},
        {"role": "tool", "content": "F2"},
    ]
    body = decode(ollama.asked.ChatBody, json.dumps({"model": "m", "messages": messages}).encode())
    found = turns(ollama.asked.ask_chat(body, THINKS, Visit()))
    ids = [made["id"] for made in found[1]["tool_calls"]]

    assert [ids[1], ids[0], ids[2]] == [turn["tool_call_id"] for turn in found[2:]]
    assert 3 == len(set(ids))


def test_ollama_s_options() -> None:
    """Each is the same one of ours; what nobody says is as Ollama has it; less than nothing is no limit."""
    options = {"num_predict": -1, "seed": 7, "stop": "a", "repeat_penalty": 1.5, "repeat_last_n": -1}
    body = decode(
        ollama.asked.TextRequest,
        json.dumps({"model": "m", "prompt": "x", "raw": True, "options": options}).encode(),
    )
    ask = ollama.asked.ask_text(body, PLAIN, Visit())

    assert (Text("x"), None, 7, ["a"]) == (ask.input, ask.max_tokens, ask.sampling.seed, ask.stops)
    assert (0.8, 40, 0.9, 1.5) == (
        ask.sampling.temperature,
        ask.sampling.top_k,
        ask.sampling.top_p,
        ask.sampling.repetition,
    )


def test_a_response_s_items_are_turns() -> None:
    """Reasoning, text and calls of the assistant's are one turn, whatever lies between the others."""
    items = [
        {"role": "developer", "content": "Be"},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {
            "type": "reasoning",
            "id": "r",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "F"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "G"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
        {"role": "user", "content": "and?"},
    ]
    body = decode(asked.Body, json.dumps({"model": "m", "input": items}).encode())
    calls = [
        {"id": id, "function": {"name": name, "arguments": "{}"}} for id, name in (("c1", "f"), ("c2", "g"))
    ]

    assert [
        {"role": "developer", "content": "Be"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "F"},
        {"role": "tool", "tool_call_id": "c2", "content": "G"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "and?"},
    ] == asked.turns(body)


def test_functions_of_namespaces() -> None:
    """The model knows each by both names; the client is told them apart, and sends them back so."""
    described = [
        {"type": "function", "name": "f", "description": "F."},
        {"type": "function", "name": "g", "description": "G."},
    ]
    tools = [
        {"type": "namespace", "name": "n", "description": "All of n.", "tools": described},
        {"type": "namespace", "name": "o", "tools": described[:1]},
        {"type": "function", "name": "f"},
    ]
    call = {"type": "function_call", "call_id": "c", "namespace": "n", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "F"}
    whole = {"model": "m", "input": [call, result], "tools": tools, "client_metadata": {"who": "Codex"}}
    body = decode(asked.Body, json.dumps(whole).encode())
    before = asked.turns(body)
    ask = asked.ask(body, before, Visit())
    assert isinstance(ask.input, Chat)
    known = [tool["function"] for tool in json.loads(ask.input.tools)]
    text = "".join(f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>' for name in ("n.f", "f"))
    response = unfolding(homes=functions.homes(body.tools or ()))
    response.of(said(text))

    assert ["n.f", "n.g", "o.f", "f"] == [function["name"] for function in known]
    assert ["All of n.\nF.", "G.", "F.", None] == [function.get("description") for function in known]
    assert "n.f" == before[0]["tool_calls"][0]["function"]["name"]
    assert [("n", "f"), (None, "f")] == [
        (item.get("namespace"), item["name"]) for item in response.whole["output"]
    ]
    assert ["n.f", "f"] == [
        made["function"]["name"] for turn in response.conversation for made in turn["tool_calls"]
    ]


# What is answered

PLACES = st.lists(st.integers(1, len(SAID)), max_size=40)


@given(PLACES)
def test_anthropic_streamed_and_whole(places: list[int]) -> None:
    """However the text is cut, the blocks add up to those of the whole message."""
    pieces = cut(SAID, places)
    answer = ScriptedAnswer([pieces])
    whole = json.loads(
        asyncio.run(anthropic.blocks.told(answer, anthropic.blocks.Head(answer, THINKS), speech()))
    )
    told = anthropic.blocks.Events(anthropic.blocks.Head(answer, THINKS), 7, speech())
    blocks: list[dict[str, Any]] = []
    ended: list[int] = []
    for name, data in events(b"".join(told.of([piece]) for piece in pieces)):
        match name:
            case "content_block_start":
                blocks.append(data["content_block"] | {"json": ""})
            case "content_block_delta":
                delta = data["delta"]
                blocks[-1]["json"] += delta.get("partial_json", "")
                for key in ("text", "thinking"):
                    if key in delta:
                        blocks[-1][key] += delta[key]
            case "content_block_stop":
                ended.append(data["index"])
    for block in blocks:
        arguments = block.pop("json")
        if arguments:
            block["input"] = json.loads(arguments)

    assert whole["content"] == blocks
    assert ["thinking", "text", "tool_use", "tool_use"] == [block["type"] for block in blocks]
    assert CALLS == [(block["name"], block["input"]) for block in blocks[2:]]
    assert list(range(4)) == ended
    assert "tool_use" == whole["stop_reason"]


@given(PLACES)
def test_ollama_streamed_and_whole(places: list[int]) -> None:
    """However the text is cut, the lines add up; each call is one line."""
    pieces = cut(SAID, places)
    body = decode(ollama.asked.ChatBody, b'{"model": "m", "messages": [{"role": "user", "content": "a"}]}')
    order = ollama.lines.order(
        ollama.asked.ask_chat(body, THINKS, Visit()), body, THINKS, ollama.lines.message
    )
    whole = json.loads(asyncio.run(asyncio.wait_for(_all(order, pieces), 60)))["message"]
    lines: Any = order.events(ScriptedAnswer([]), speech())
    told = [json.loads(line) for piece in pieces for line in lines.of([piece]).splitlines()]
    messages = [line["message"] for line in told]
    calls = [call for message in messages for call in message.get("tool_calls", ())]

    assert whole["content"] == "".join(message["content"] for message in messages)
    assert whole["thinking"] == "".join(message.get("thinking", "") for message in messages)
    assert whole["tool_calls"] == calls
    assert CALLS == [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    assert [0, 1] == [call["function"]["index"] for call in calls]


async def _all(order: Any, pieces: list[Piece]) -> bytes:
    made: bytes = await order.whole(ScriptedAnswer([pieces]), speech())
    return made


def test_signs_of_life() -> None:
    """What is told while nothing comes: a ping after the message's start, a line that says nothing."""
    answer = ScriptedAnswer([])
    told = anthropic.blocks.Events(anthropic.blocks.Head(answer, PLAIN), 7, Speech())
    body = decode(ollama.asked.ChatBody, b'{"model": "m", "messages": [{"role": "user", "content": "a"}]}')
    order = ollama.lines.order(ollama.asked.ask_chat(body, PLAIN, Visit()), body, PLAIN, ollama.lines.message)
    line = json.loads(order.events(answer, Speech()).waiting())
    names = [name for name, _ in events(told.waiting() + told.waiting() + told.of(said("a")))]

    assert ["message_start", "ping", "ping", "content_block_start"] == names[:4]
    assert "message_start" not in names[1:]
    assert ({"role": "assistant", "content": ""}, False) == (line["message"], line["done"])


def unfolding(homes: dict[str, tuple[str, str]] | None = None) -> Unfolding:
    return Unfolding(ScriptedAnswer([[]]), speech(), {"model": "m"}, [], homes or {})


@given(PLACES)
def test_a_response_s_events_add_up(places: list[int]) -> None:
    """However the text is cut, items, deltas and the finished response say the same, and replay the same."""
    response = unfolding()
    raw = b"".join(response.of([piece]) for piece in cut(SAID, places))
    found = events(raw)
    done = [data["item"] for name, data in found if name == "response.output_item.done"]
    deltas: dict[str, str] = {}
    for _, data in found:
        if "delta" in data:
            deltas[data["item_id"]] = deltas.get(data["item_id"], "") + data["delta"]
    final = found[-1][1]["response"]

    assert list(range(len(found))) == [data["sequence_number"] for _, data in found]
    assert done == final["output"] == json.loads(msgspec.json.encode(response.whole))["output"]
    assert ["reasoning", "message", "function_call", "function_call"] == [item["type"] for item in done]
    for item in done:
        text = item["arguments"] if "arguments" in item else item["content"][0]["text"]
        assert text == deltas[item["id"]]
    assert raw == b"".join(response.events(-1))
    assert found[5:] == events(b"".join(response.events(4)))


def test_a_failed_response_says_so_once() -> None:
    """An error, then the response as failed; and it stays so."""
    response = unfolding()
    response.of([Piece(1, "a", "")])
    failure = Failure(Code.DEADLINE_EXCEEDED, "late")
    told = response.failed(failure)
    response.left(failure)

    assert ["error", "response.failed"] == [name for name, _ in events(told)]
    assert told == response.failed(failure)
    assert "failed" == response.whole["status"]
    assert ["error", "response.failed"] == [name for name, _ in events(b"".join(response.events(-1)))][-2:]


def test_a_response_that_nobody_tells_is_cancelled() -> None:
    """Its job too."""
    answer = ScriptedAnswer([])
    response = Unfolding(answer, speech(), {}, [], {})
    response.of([Piece(1, "a", "")])
    response.left(None)

    assert "cancelled" == response.whole["status"]
    assert answer.cancelled.is_set()


# What is kept


@pytest.mark.parametrize(
    ("limits", "left"),
    [({"age_s": 5.0}, 4), ({"count": 3}, 3), ({"size": 1}, 0), ({}, 10)],
)
def test_what_is_kept_is_bounded(limits: dict[str, Any], left: int) -> None:
    """By age, by number and by size, and the oldest go first."""
    now = 0.0
    kept = Kept(lambda: now, **limits)
    made = []
    for _ in range(10):
        response = unfolding()
        response.of(said("a"))
        kept.put("", response)
        made.append(response)
        now += 1
    found = [response for response in made if kept.get("", response.id)]

    assert made[10 - left :] == found
    assert left == len(kept)


def test_what_is_being_made_is_kept() -> None:
    """However old and large it is: somebody reads it."""
    kept = Kept(lambda: 0.0, size=0)
    response = unfolding()
    response.of([Piece(1, "a", "")])
    kept.put("a", response)

    assert response is kept.get("a", response.id)
    assert kept.get("b", response.id) is None
