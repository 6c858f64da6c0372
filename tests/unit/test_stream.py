"""The bytes of a streamed answer."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.types import Message

from millrace.errors import Code, Failure
from services.gateway.desk import Piece
from services.gateway.http.stream import EventStream, quoted
from services.gateway.speech import Arguments, Call, Content, Reasoning, Saying, Speech
from services.gateway.surfaces.openai.chunks import Events, Head
from services.gateway.surfaces.openai.whole import whole
from tests.kit.desk import ScriptedAnswer, said

HEAD = Head(
    id="chatcmpl-1", object="chat.completion.chunk", created=5, model="sim", system_fingerprint="fp_1"
)
OPENING = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"sim",'
    b'"system_fingerprint":"fp_1","choices":['
)


def chunks(raw: bytes) -> list[Any]:
    events = raw.decode().split("\n\n")
    assert "" == events.pop()
    return [
        json.loads(event.removeprefix("data: ")) if "[DONE]" not in event else "[DONE]" for event in events
    ]


def test_golden_bytes_of_a_chat() -> None:
    """Role, one chunk a token, the reason for the end, [DONE]: these bytes."""
    events = Events(HEAD, "chat", 7)

    assert (
        OPENING
        + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
        + OPENING
        + b'{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}\n\n'
        + OPENING
        + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
        + b"data: [DONE]\n\n"
    ) == events.of(said("Hi"))


def test_golden_bytes_of_a_completion() -> None:
    """The older route has text in place of a delta, and no role."""
    events = Events(HEAD, "text", 7)

    assert (
        OPENING
        + b'{"index":0,"text":"Hi","logprobs":null,"finish_reason":null}]}\n\n'
        + OPENING
        + b'{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}\n\n'
        + b"data: [DONE]\n\n"
    ) == events.of(said("Hi", finish="length"))


def test_usage_comes_last() -> None:
    """With include_usage the last chunk has it and no choices, and the others say null."""
    events = Events(HEAD, "chat", 7, include_usage=True)
    events.cached_tokens = 6
    *others, last, done = chunks(events.of(said("a", "", "b")))

    assert "[DONE]" == done
    assert [] == last["choices"]
    assert {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 6},
    } == last["usage"]
    assert [None] * 4 == [chunk["usage"] for chunk in others]


def test_continuous_usage() -> None:
    """With continuous_usage_stats every chunk counts the tokens so far."""
    events = Events(HEAD, "chat", 7, include_usage=True, continuous_usage=True)
    *counted, done = chunks(events.of(said("a", "b")))

    assert "[DONE]" == done
    assert [0, 1, 2, 2, 2] == [chunk["usage"]["completion_tokens"] for chunk in counted]


def test_token_ids() -> None:
    """With return_token_ids each token has its chunk and its id, text or not."""
    _, *tokens, _last, _done = chunks(Events(HEAD, "chat", 7, token_ids=True).of(said("a", "", "b")))

    assert [(100, "a"), (101, ""), (102, "b")] == [
        (chunk["choices"][0]["token_ids"][0], chunk["choices"][0]["delta"]["content"]) for chunk in tokens
    ]


class Scripted:
    """A parser that says what its script has for a word."""

    def __init__(self, script: dict[str, list[Saying]]):
        self._script = script

    def feed(self, text: str) -> list[Saying]:
        return self._script[text]

    def finish(self) -> list[Saying]:
        return [Arguments(0, "}")]


SCRIPT: dict[str, list[Saying]] = {
    "<think>": [],
    "hm": [Reasoning("h"), Reasoning("m")],
    "so": [Content("so "), Call(0, "call_1", "look"), Arguments(0, '{"a":'), Arguments(0, '"\u2028"')],
    "end": [],
}


def test_parts_are_deltas() -> None:
    """One chunk a part, neighbours of a kind together; a call, then its arguments; the end says why."""
    events = Events(HEAD, "chat", 7, token_ids=True, speeches=[Speech(Scripted(SCRIPT))])
    raw = events.of(said(*SCRIPT))
    *told, done = chunks(raw)
    choices = [chunk["choices"][0] for chunk in told]

    assert "[DONE]" == done
    assert [
        ({"role": "assistant", "content": ""}, None),
        ({"content": ""}, [100]),
        ({"reasoning_content": "hm", "reasoning": "hm"}, [101]),
        ({"content": "so "}, [102]),
        (called(id="call_1", type="function", function={"name": "look", "arguments": ""}), None),
        (called(function={"arguments": '{"a":"\u2028"'}), None),
        (called(function={"arguments": "}"}), [103]),
        ({}, None),
    ] == [(choice["delta"], choice.get("token_ids")) for choice in choices]
    assert [None] * 7 + ["tool_calls"] == [choice["finish_reason"] for choice in choices]
    assert all(len(line) == len(line.splitlines()[0]) for line in raw.decode().split("\n") if line)


def called(**what: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **what}]}


async def test_a_whole_answer_is_what_its_deltas_add_up_to() -> None:
    """Content, reasoning and calls, from the same parts."""
    raw = await whole(
        ScriptedAnswer([said(*SCRIPT)]), HEAD, "chat", [Speech(Scripted(SCRIPT))], token_ids=True
    )
    answer = json.loads(raw)
    function = {"name": "look", "arguments": '{"a":"\u2028"}'}

    assert {
        "role": "assistant",
        "content": "so ",
        "refusal": None,
        "reasoning_content": "hm",
        "reasoning": "hm",
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    } == answer["choices"][0]["message"]
    assert ("tool_calls", [100, 101, 102, 103], 4) == (
        answer["choices"][0]["finish_reason"],
        answer["choices"][0]["token_ids"],
        answer["usage"]["completion_tokens"],
    )


def test_an_answer_cut_off_in_a_call_says_so() -> None:
    """A call that max_tokens cut is not one to be made: the reason is the length."""
    pieces = said("so", "end", finish="length")
    *_, last, _done = chunks(Events(HEAD, "chat", 7, speeches=[Speech(Scripted(SCRIPT))]).of(pieces))

    assert "length" == last["choices"][0]["finish_reason"]


pieces = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=12)


@given(pieces, st.data(), st.booleans())
def test_bytes_do_not_depend_on_batches(texts: list[str], data: st.DataObject, token_ids: bool) -> None:
    """However the pieces come together, the client receives the same bytes."""
    one = Events(HEAD, "chat", 7, include_usage=True, token_ids=token_ids)
    other = Events(HEAD, "chat", 7, include_usage=True, token_ids=token_ids)
    answer = said(*texts)
    cut = data.draw(st.integers(0, len(answer)))
    parts = [part for part in (answer[:cut], answer[cut:]) if part]

    assert one.of(answer) == b"".join(other.of(part) for part in parts)


@given(pieces)
def test_text_cannot_leave_its_event(texts: list[str]) -> None:
    """Token text comes out as it went in, and makes no line or event of its own for any client."""
    raw = Events(HEAD, "chat", 7).of(said(*texts))
    lines = [line for line in raw.decode().splitlines() if line]

    assert "".join(texts) == "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines[:-1]
    )


def test_awkward_separators_are_escaped() -> None:
    """What `str.splitlines` takes for the end of a line is escaped."""
    assert rb'"\u0085\u2028\u2029\n"' == quoted("\u0085\u2028\u2029\n")


class Sent:
    """An ASGI send that keeps what it was given."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages[1:]]


async def test_one_write_takes_all_that_is_there() -> None:
    """Pieces that came together leave together, and the end of the body with the last of them."""
    sent = Sent()
    answer = ScriptedAnswer([[Piece(1, "a", ""), Piece(2, "b", "")], said("c")])
    await EventStream(sent).run(answer, Events(HEAD, "chat", 7))

    assert ["http.response.start", "http.response.body", "http.response.body"] == [
        m["type"] for m in sent.messages
    ]
    assert [True, False] == [m["more_body"] for m in sent.messages[1:]]


class Wire:
    """A connection whose client keeps up, or does not, as the test says."""

    def __init__(self) -> None:
        self.clear = False
        self.parts: list[bytes] = []

    def push(self, part: bytes) -> None:
        self.parts.append(part)


async def test_pieces_from_the_middle_go_straight_to_a_client_that_keeps_up() -> None:
    """The way they take does not show in the bytes: the beginning, the end and what has to wait are sent."""
    sent, wire = Sent(), Wire()
    halfway, rest = asyncio.Event(), asyncio.Event()
    answer = ScriptedAnswer([[Piece(1, "a", "")], halfway, [Piece(4, "d", "")], rest, said("e")])
    stream = asyncio.ensure_future(EventStream(sent, wire).run(answer, Events(HEAD, "chat", 7)))
    early = answer.eager is not None and answer.eager([Piece(9, "early", "")])
    while not sent.bodies:
        await asyncio.sleep(0)
    assert answer.eager is not None
    blocked = answer.eager([Piece(2, "b", "")])
    wire.clear = True
    taken = answer.eager([Piece(2, "b", ""), Piece(3, "c", "")])
    last = answer.eager([Piece(5, "e", "stop")])
    halfway.set()
    rest.set()
    await stream

    texts = [c["choices"][0]["delta"].get("content", "") for raw in wire.parts for c in chunks(raw)]
    assert (False, False, True, False) == (early, blocked, taken, last)
    assert ["b", "c"] == texts
    assert sent.bodies[-1].endswith(b"[DONE]\n\n")
    assert answer.eager is None


async def test_silence_is_filled() -> None:
    """A stream that is quiet for long carries comments, before the first token too, and no others."""
    sent = Sent()
    answer = ScriptedAnswer([0.05, [Piece(1, "a", "")], said("b")])
    await EventStream(sent, keep_alive_s=0.02).run(answer, Events(HEAD, "chat", 7))
    *comments, _first, last = sent.bodies

    assert {b": waiting\n\n"} == set(comments)
    assert last.endswith(b"[DONE]\n\n")


async def test_no_comment_while_tokens_come() -> None:
    """A stream that is never quiet has no comment."""
    sent = Sent()
    await EventStream(sent).run(ScriptedAnswer([[Piece(1, "a", "")], said("b")]), Events(HEAD, "chat", 7))

    assert not any(body.startswith(b":") for body in sent.bodies)


async def test_a_failure_before_the_first_piece_sends_nothing() -> None:
    """Such an answer can still be an error with its own status."""
    sent = Sent()
    stream = EventStream(sent)
    with pytest.raises(Failure):
        await stream.run(ScriptedAnswer([Failure(Code.DEADLINE_EXCEEDED, "late")]), Events(HEAD, "chat", 7))

    assert (False, []) == (stream.started, sent.messages)


async def test_a_failure_later_is_an_event() -> None:
    """A stream that fails ends with one error event, never with [DONE]."""
    sent = Sent()
    stream = EventStream(sent)
    late = Failure(Code.DEADLINE_EXCEEDED, "late")
    with pytest.raises(Failure):
        await stream.run(ScriptedAnswer([[Piece(1, "a", "")], late]), Events(HEAD, "chat", 7))
    await stream.fail(late)

    assert (
        b'data: {"error":{"message":"late","type":"timeout_error",'
        b'"param":null,"code":"deadline_exceeded"}}\n\n' == sent.bodies[-1]
    )
    assert b"[DONE]" not in b"".join(sent.bodies)


async def test_a_cancelled_stream_leaves_nothing_behind() -> None:
    """Its keep-alive ends with it."""
    stream = asyncio.ensure_future(EventStream(Sent()).run(ScriptedAnswer([60.0]), Events(HEAD, "chat", 7)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stream.cancel()
    await asyncio.wait((stream,))

    assert {asyncio.current_task()} == asyncio.all_tasks()
