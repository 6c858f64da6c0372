"""What an answer has to be, as one grammar in llguidance's dialect of Lark.

    grammar     of a request's form (JSON, a regular expression, ...), its tools, and how the model speaks

Tools that must be called are called in the model's own form, so that its parser finds them. A model that
reasons may do so first: the grammar begins behind its reasoning.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from llguidance.gbnf_to_lark import gbnf_to_lark

from millrace.grammar import GrammarError
from millrace.messages import Form
from services.tokenizer.closed import close
from services.tokenizer.voice import THINKING
from services.tokenizer.wish import Wish

TAGS = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]"}
ANYTHING = "(?s:.*)"

SPACE = {"whitespace_pattern": " |\\n[ \\t]{0,20}"}
"""Between JSON's parts: on one line or indented, but never without end, where small models get lost."""


def grammar(wish: Wish, special: Callable[[str], bool]) -> str:
    """`special`: whether a tag is a token of its own, which no text in a grammar stands for."""
    tools = wish.tools
    rules: list[str] = []
    must = wish.chat is not None and wish.chat.must_call
    nested: list[dict[str, str]] = []
    choices = []
    if wish.form is not None and not must:
        choices.append("form")
        rules += _form(wish.form, nested)
    if tools:
        rules += _calls(wish, tools, special)
        choices.append("calls")
        if wish.form is None and not must:
            choices += _text_first(wish.voice.calls, rules, special)
    rules.append(f"body: {' | '.join(choices)}")
    rules += _start(wish, special)
    lark = "\n".join(reversed(rules))
    return json.dumps({"grammars": [{"lark_grammar": lark}, *nested]}, ensure_ascii=False)


def _start(wish: Wish, special: Callable[[str], bool]) -> Iterator[str]:
    """The reasoning, if there is any, and what has to be kept to behind it."""
    if not wish.voice.reasoning:
        yield "start: body"
        return
    begin, end = THINKING
    if special(end):
        yield f"thought: /{ANYTHING}/ {end}"
    else:
        yield f"thought[lazy]: /{ANYTHING}<\\/think>/"
    yield "gap: /[ \\n]{0,4}/"
    begins = begin if special(begin) else _text(begin)
    yield "start: thought gap body" if wish.begun else f"start: ({begins} thought gap)? body"


def _form(form: Form, nested: list[dict[str, str]]) -> list[str]:
    match form.kind:
        case "object":
            return [f"form: {_json({'type': 'object'})}"]
        case "schema":
            return [f"form: {_json(close(json.loads(form.text)))}"]
        case "regex":
            return [f"form: {_regex(form.text)}"]
        case "choice":
            # One terminal: as rules, some thousand of them are too many at one place.
            return ["form: CHOICE", f"CHOICE: {' | '.join(map(_text, json.loads(form.text)))}"]
        case "grammar":
            text = form.text
            if "::=" in text:  # as llama.cpp writes them
                try:
                    text = gbnf_to_lark(text)
                except Exception as error:  # the converter raises its own and others'
                    raise GrammarError(f"not a grammar: {error}") from None
            nested.append({"name": "given", "lark_grammar": text})
            return ["form: @given"]


def _json(schema: dict[str, Any], *, lenient: bool = False) -> str:
    """`lenient`: what cannot be kept to is let be."""
    return "%json " + json.dumps({"x-guidance": SPACE | {"lenient": lenient}} | schema, ensure_ascii=False)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(pattern: str) -> str:
    """Between slashes, escaped, and on one line. It is for a whole text: anchors at its ends say nothing."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2 == 1:
        pattern = pattern[:-1]
    said, escaped = "", False
    for char in pattern:
        if char == "/" and not escaped:
            said += "\\/"
        elif char == "\n":
            said += "n" if escaped else "\\n"
        else:
            said += char
        escaped = char == "\\" and not escaped
    return f"/{said}/" if said else '""'


# -- calls, as each parser reads them


def _calls(wish: Wish, tools: list[dict[str, Any]], special: Callable[[str], bool]) -> list[str]:
    """The rules of `calls`: one call or more, of any of the tools."""
    assert wish.chat is not None
    form = wish.voice.calls
    names = [f"call_{index}" for index in range(len(tools))]
    more = {"hermes": "\n", "llama3_json": "; ", "mistral": ", ", "pythonic": ", "}[form]
    before, after = {"mistral": ("[", "]"), "pythonic": ("[", "]")}.get(form, ("", ""))
    listed = "call" if wish.chat.one_call else f"call ({_text(more)} call)*"
    tag = TAGS.get(form, "")
    opened = f"{_tag(tag, special)} " if tag == "[TOOL_CALLS]" else ""
    rules = [
        f"calls: {opened}{_text(before) if before else ''} {listed} {_text(after) if after else ''}",
        f"call: {' | '.join(names)}",
    ]
    for name, tool in zip(names, tools, strict=True):
        if form == "pythonic":
            rules += _python_call(name, tool)
            continue
        key = "parameters" if form == "llama3_json" else "arguments"
        head = f'{{"name": {_text(tool["name"])}, "{key}": '
        given = _json(_schema(tool), lenient=not tool.get("strict"))
        if form == "hermes":
            end = _tag("</tool_call>", special)
            body = f"{_tag(tag, special)} {_text(chr(10) + head)} {name}_given {_text('}' + chr(10))} {end}"
        else:
            body = f'{_text(head)} {name}_given "}}"'
        rules += [f"{name}: {body}", f"{name}_given: {given}"]
    return rules


def _tag(tag: str, special: Callable[[str], bool]) -> str:
    if not special(tag):
        return _text(tag)
    return tag if tag.startswith("<") else f"<{tag}>"


def _schema(tool: dict[str, Any]) -> dict[str, Any]:
    """What the arguments have to be. One that is not strict is kept to as far as that can be done."""
    return close({"type": "object", **(tool.get("parameters") or {"properties": {}})})


def _python_call(name: str, tool: dict[str, Any]) -> list[str]:
    """`f(a=1, b="x")`: what is required comes first, then what is not, each in the schema's order."""
    schema = _schema(tool)
    properties: dict[str, Any] = schema.get("properties", {})
    beside = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    lenient = not tool.get("strict")
    required = [key for key in properties if key in schema.get("required", ())]
    optional = [key for key in properties if key not in required]
    rules = []
    for index, key in enumerate([*required, *optional]):
        if not key.isidentifier():
            raise GrammarError(f"{key!r} cannot be the name of an argument")
        value = properties[key] if isinstance(properties[key], dict) else {}
        rules.append(f"{name}_{index}: {_text(key + '=')} {_json(beside | value, lenient=lenient)}")
    count = len(required)
    listed = ' ", " '.join(f"{name}_{index}" for index in range(count))
    following = "".join(f'(", " {name}_{index})? ' for index in range(count, len(properties)))
    if count:
        given = f"{listed} {following}"
    else:
        # Any of them may be the first.
        firsts = [
            f"{name}_{first} "
            + "".join(f'(", " {name}_{index})? ' for index in range(first + 1, len(properties)))
            for first in range(len(properties))
        ]
        given = f"({' | '.join(firsts)})?" if firsts else ""
    return [f'{name}: {_text(tool["name"] + "(")} {given} ")"', *rules]


def _text_first(form: str, rules: list[str], special: Callable[[str], bool]) -> list[str]:
    """Where calls may be made and need not: text that is none, and text before them."""
    if form in TAGS:
        tag = TAGS[form]
        if special(tag):
            rules.append(f"TEXT: /{ANYTHING}/")
        else:
            plain = tag.replace("[", "\\[").replace("]", "\\]")
            rules.append(f"TEXT: /{ANYTHING}/ & ~/{ANYTHING}{plain}{ANYTHING}/")
        return ["TEXT", "TEXT calls"]
    first = "[^{\\s<]" if form == "llama3_json" else "[^\\[\\s]"
    rules.append(f"TEXT: /{first}{ANYTHING}/")
    return ["TEXT"]
