"""Text told apart: calls and reasoning, the same however the text was cut."""

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.gateway.desk import Piece
from services.gateway.speech import Chain, Parser, Speech, Spoken
from services.gateway.speech.json_calls import Hermes, Llama3, Mistral
from services.gateway.speech.parts import Called
from services.gateway.speech.pythonic import Pythonic
from services.gateway.speech.reader import Reader
from services.gateway.speech.thinking import Thinking


def number(index: int) -> str:
    return f"c{index}"


MAKERS: dict[str, Callable[[], Parser]] = {
    "hermes": lambda: Hermes(number),
    "llama3_json": lambda: Llama3(number),
    "mistral": lambda: Mistral(number),
    "pythonic": lambda: Pythonic(number),
    "thinking": lambda: Thinking(begun=False),
    "begun": lambda: Thinking(begun=True),
    "both": lambda: Chain(Thinking(begun=False), Hermes(number)),
}


def spoken(parser: Parser, pieces: list[str]) -> Spoken:
    speech, whole = Speech(parser), Spoken()
    for at, text in enumerate(pieces):
        for part in speech.hear(Piece(at, text, "stop" if at == len(pieces) - 1 else "")):
            whole.add(part)
    return whole


def calls(*called: tuple[str, str]) -> list[Called]:
    return [Called(number(index), name, arguments) for index, (name, arguments) in enumerate(called)]


HERMES = [
    ("Hello there.\n", "Hello there.\n", []),
    ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [("f", '{"a": 1}')]),
    ('<tool_call>{"arguments": {"a": "}"}, "name": "f"}</tool_call>', "", [("f", '{"a": "}"}')]),
    ('Look:\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n', "Look:", [("f", "{}")]),
    (
        '<tool_call>{"name": "f", "arguments": {"s": "\\"</tool_call>"}}</tool_call>\n'
        '<tool_call>{"name": "ü", "arguments": {"é": ["\\\\", {"b": null}]}}</tool_call>',
        "",
        [("f", '{"s": "\\"</tool_call>"}'), ("ü", '{"é": ["\\\\", {"b": null}]}')],
    ),
    # Some write the object's JSON as a string, leave out what is empty, add what nobody asked for, or
    # forget the end; these are calls.
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"id": 1.5e3, "name": "f", "arguments": {}, "x": [1]}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    (
        '<tool_call>{"name": "f", "arguments": {}}<tool_call>{"name": "g", "arguments": {}}',
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    # These are none, and nothing of them is lost.
    ("<tool_call>\nnothing</tool_call> and on", "<tool_call>\nnothing</tool_call> and on", []),
    (
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        [],
    ),
    ('<tool_call>{"name": "f", "arguments": [1]}x', '<tool_call>{"name": "f", "arguments": [1]}x', []),
    (
        '<tool_call>{"name": "\\ud800", "arguments": {}}',
        '<tool_call>{"name": "\\ud800", "arguments": {}}',
        [],
    ),
    ('<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    ("a <tool_ca b <tool_call", "a <tool_ca b <tool_call", []),
    ('<tool_call>{]}<tool_call>{"name": "f"}</tool_call>', "<tool_call>{]}", [("f", "{}")]),
    # A call is made when its arguments begin; what goes wrong later shows in them, and after them.
    (
        '<tool_call>{"name": "f", "arguments": {"a": oops}}</tool_call>',
        "oops}}</tool_call>",
        [("f", '{"a": ')],
    ),
    ('<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
]
LLAMA = [
    ("Hello {you}", "Hello {you}", []),
    ('{"name": "f", "parameters": {"a": "b"}}', "", [("f", '{"a": "b"}')]),
    ('<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", "{}")]),
    (
        '{"name": "f", "arguments": {}}; {"name": "g", "parameters": {"x": 1}}\n',
        "",
        [("f", "{}"), ("g", '{"x": 1}')],
    ),
    ('{"name": "Emil", "age": 27}', '{"name": "Emil", "age": 27}', []),
    ('\n{"a": 1} so', '\n{"a": 1} so', []),
    ("<|python print", "<|python print", []),
    ('{"name": "f", "parameters": {}} and', "and", [("f", "{}")]),
]
MISTRAL = [
    ("Hello [you]", "Hello [you]", []),
    (
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": [1]}}, {"name": "g", "arguments": {}}]',
        "",
        [("f", '{"a": [1]}'), ("g", "{}")],
    ),
    ('[TOOL_CALLS] {"name": "f", "arguments": {}}', "", [("f", "{}")]),
    ('Well.[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g-2[ARGS]{}', "Well.", [("f", '{"a": 1}'), ("g-2", "{}")]),
    ('[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"a": 1}', "", [("f", '{"a": 1}')]),
    ("[TOOL_CALLS] none!", "[TOOL_CALLS] none!", []),
    ('[TOOL_CALLS][{"name": "f"', '[TOOL_CALLS][{"name": "f"', []),
    ("[TOOL_CALLS]a b{}", "[TOOL_CALLS]a b{}", []),
]
PYTHONIC = [
    ("[1, 2] is a list", "[1, 2] is a list", []),
    ("[f()]", "", [("f", "{}")]),
    ("[f(a='x', b=[1, 2.5], c={'k': None}), m.g(d=true)]", "",
     [("f", '{"a": "x", "b": [1, 2.5], "c": {"k": null}}'), ("m.g", '{"d": true}')]),
    ("[f(a=\"it's (\\\") ü\")]\n", "", [("f", '{"a": "it\'s (\\") ü"}')]),
    ("[f(1)]", "[f(1)]", []),
    ("[f(a=g())]", "[f(a=g())]", []),
    ("[f(**x)]", "[f(**x)]", []),
    ("[f(a=1e999)]", "[f(a=1e999)]", []),
    ("[f(a=1), oops", ", oops", [("f", '{"a": 1}')]),
    ("[f(a=" + "[" * 40, "[f(a=" + "[" * 40, []),
]  # fmt: skip
CASES = [
    *(("hermes", *case) for case in HERMES),
    *(("llama3_json", *case) for case in LLAMA),
    *(("mistral", *case) for case in MISTRAL),
    *(("pythonic", *case) for case in PYTHONIC),
]


@pytest.mark.parametrize(("parser", "text", "content", "called"), CASES)
def test_calls(parser: str, text: str, content: str, called: list[tuple[str, str]]) -> None:
    """What is a call is told as one, as its bytes are; all else is content."""
    whole = spoken(MAKERS[parser](), [*text])

    assert (content, calls(*called)) == (whole.content, whole.calls)
    assert ("tool_calls" if called else "stop") == whole.reason


THOUGHTS = [
    ("thinking", "Hello <think>", "", "Hello <think>"),
    ("thinking", "<think>\nhm\n</think>\n\nHi", "hm", "Hi"),
    ("thinking", "\n<think>hm", "hm", ""),
    ("thinking", " <thin ice", "", " <thin ice"),
    ("thinking", "<think></think>Hi </think>", "", "Hi </think>"),
    ("begun", "hm </thin</think> Hi", "hm </thin", "Hi"),
    ("begun", "\n<think>\nhm <think>\n</think>\n", "hm<think>", ""),
    ("begun", "never ends ", "never ends ", ""),
]


@pytest.mark.parametrize(("parser", "text", "reasoning", "content"), THOUGHTS)
def test_reasoning(parser: str, text: str, reasoning: str, content: str) -> None:
    """The reasoning without its tags and the white space beside them; the answer without either."""
    whole = spoken(MAKERS[parser](), [*text])

    assert (reasoning, content) == (whole.reasoning, whole.content)


SCRAPS = (
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "<think>",
        "</think>",
        "[ARGS]",
        "[CALL_ID]",
    ),
    *(
        '{"name": "',
        '", "arguments": {',
        '"parameters": {',
        "}}",
        '"',
        "\\",
        '\\"',
        "\\u00e9",
        "\n",
        " ",
        ";",
        ",",
    ),
    *("[f(", "a=", "'x'", ")]", "ü", "水", "🇳🇴", "\u2028", "{", "}", "[", "]", "<", ":", "1.5", "true", "x"),
)
TEXT = st.lists(st.sampled_from(SCRAPS) | st.text(max_size=3), max_size=14).map("".join)


@settings(max_examples=300)
@given(st.sampled_from(sorted(MAKERS)), TEXT | st.sampled_from([case[1] for case in CASES]), st.data())
@example("hermes", HERMES[4][0], None)
def test_every_split_gives_the_same_parts(parser: str, text: str, data: st.DataObject | None) -> None:
    """One character at a time, all at once, or cut anywhere: the same content, reasoning and calls."""
    cuts = data.draw(st.sets(st.integers(0, len(text)))) if data else {3, 5, 40, 41}
    places = sorted({0, len(text), *cuts})
    pieces = [text[start:end] for start, end in pairwise(places)] or [""]

    assert spoken(MAKERS[parser](), [text]) == spoken(MAKERS[parser](), pieces)
    assert spoken(MAKERS[parser](), [text]) == spoken(MAKERS[parser](), [*text, ""])


@settings(max_examples=300)
@given(st.sampled_from(sorted(MAKERS)), TEXT)
def test_nothing_is_lost(parser: str, text: str) -> None:
    """Whatever the text, each letter of it is in some part, unless it is a tag's or a call's own."""
    whole = spoken(MAKERS[parser](), [text])
    said = whole.content + whole.reasoning + "".join(call.name + call.arguments for call in whole.calls)

    assert "".join(said.split()) == "".join(text.split()) or whole.calls or "think>" in text


@given(st.lists(st.tuples(st.text(min_size=1), st.dictionaries(st.text(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5,
))), min_size=1, max_size=3))  # fmt: skip
def test_what_is_written_is_read(called: list[tuple[str, dict[str, object]]]) -> None:
    """Any names and arguments come out of the JSON forms as they went in, and quickly closed again."""
    written = [json.dumps({"name": name, "arguments": given}, ensure_ascii=False) for name, given in called]
    forms = {
        "hermes": "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in written),
        "llama3_json": "; ".join(written),
        "mistral": f"[TOOL_CALLS][{', '.join(written)}]",
    }
    for parser, text in forms.items():
        whole = spoken(MAKERS[parser](), [text])

        assert ("", called) == (
            whole.content,
            [(call.name, json.loads(call.arguments)) for call in whole.calls],
        )


def test_arguments_stream() -> None:
    """A call is told when its arguments begin, and these as they come, not at their end."""
    parser = Hermes(number)
    heard = [
        parser.feed(text) for text in ("<tool_call>", '{"name": "f", "argu', 'ments": {"a', '": 1', "}}")
    ]

    assert [False, False, True, True, True] == [bool(parts) for parts in heard]


def test_one_call_at_a_time() -> None:
    """A client that asked for no parallel calls is told of the first alone."""
    speech, whole = Speech(Hermes(number), most_calls=1), Spoken()
    for part in speech.hear(Piece(1, 2 * '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "stop")):
        whole.add(part)

    assert calls(("f", "{}")) == whole.calls


def test_an_end_that_is_shown_is_left_out() -> None:
    """Where control tokens have to be shown, the one that ends the answer is none of its content."""
    speech = Speech(Mistral(number), ends=("</s>",))
    told = [speech.hear(piece) for piece in (Piece(1, "a</s>", ""), Piece(2, "b</s>", "stop"))]

    assert ["a</s>", "b"] == [part.text for parts in told for part in parts if hasattr(part, "text")]


def test_a_reader_reads_to_the_end() -> None:
    """Every parser takes a text of nothing."""
    for make in MAKERS.values():
        parser = make()
        assert [] == parser.finish()
        assert isinstance(parser, Reader | Chain)
