"""Renders a chart as Helm does, as far as ours goes: a Helm binary cannot be had from package registries.

Go's templates with if, else, range, with, variables and pipelines, and a few of Sprig's functions. What it
does not know is an error, never silently empty: as with Helm's --strict.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\(|\)|\||:=|,|[^\s()|,]+')

Scope = dict[str, Any]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "quote": lambda value: json.dumps(str(value)),
    "toJson": json.dumps,
    "int": int,
    "not": lambda value: not value,
    "and": lambda *values: all(values) and values[-1],
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "eq": lambda one, other: one == other,
    "gt": lambda one, other: one > other,
    "default": lambda fallback, value: value or fallback,
    "printf": lambda form, *values: form % values,
}


@dataclass
class Block:
    """`if` or `range` with its branches, or the whole file."""

    kind: str
    about: str
    body: list[Any] = field(default_factory=list)
    otherwise: list[Any] = field(default_factory=list)


def render(chart: Path, *values: Path, release: str = "mill") -> list[dict[str, Any]]:
    """All documents of a chart, with these value files over its own."""
    merged = yaml.safe_load((chart / "values.yaml").read_text())
    for path in values:
        merged = _merged(merged, yaml.safe_load(path.read_text()))
    root = {"Values": merged, "Release": {"Name": release}}
    documents = []
    for path in sorted((chart / "templates").glob("*.yaml")):
        text = "".join(_run(_parsed(path.read_text()).body, root, {"$": root}))
        documents += [each for each in yaml.safe_load_all(text) if each]
    return documents


def _merged(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return {key: _merged(under.get(key), over.get(key, under.get(key))) for key in {**under, **over}}
    return over


def _parsed(text: str) -> Block:
    stack = [Block("file", "")]
    into = [stack[0].body]
    at, trim = 0, False
    for found in ACTION.finditer(text):
        plain = text[at : found.start()]
        plain = plain.lstrip() if trim else plain
        into[-1].append(plain.rstrip() if found[1] else plain)
        at, trim = found.end(), bool(found[3])
        word, _, about = found[2].partition(" ")
        if word in ("if", "range"):
            block = Block(word, about)
            into[-1].append(block)
            stack.append(block)
            into.append(block.body)
        elif word == "else":
            assert not about, "else if is not known here"
            into[-1] = stack[-1].otherwise
        elif word == "end":
            stack.pop()
            into.pop()
        else:
            into[-1].append(("say", found[2]))
    into[-1].append(text[at:].lstrip() if trim else text[at:])
    assert len(stack) == 1, f"{stack[-1].kind} {stack[-1].about} has no end"
    return stack[0]


def _run(nodes: list[Any], dot: Any, names: Scope) -> Iterator[str]:
    for node in nodes:
        match node:
            case str():
                yield node
            case ("say", expression):
                yield _said(_value(expression, dot, names))
            case Block("if"):
                yield from _run(node.body if _value(node.about, dot, names) else node.otherwise, dot, names)
            case Block("range"):
                variables, _, source = node.about.rpartition(":=")
                keys = [name.strip() for name in variables.split(",")]
                assert len(keys) == 2, "range is known with a key and a value"
                for key, value in sorted((_value(source, dot, names) or {}).items()):
                    yield from _run(node.body, value, {**names, keys[0]: key, keys[1]: value})


def _said(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _value(expression: str, dot: Any, names: Scope) -> Any:
    words = WORD.findall(expression)
    value, rest = _pipeline(words, dot, names)
    assert not rest, f"{expression}: {rest} is left"
    return value


def _pipeline(words: list[str], dot: Any, names: Scope) -> tuple[Any, list[str]]:
    value: Any = None
    first = True
    while True:
        terms: list[Any] = []
        while words and words[0] not in ("|", ")"):
            word = words[0]
            if word == "(":
                inner, words = _pipeline(words[1:], dot, names)
                assert words[:1] == [")"], "a parenthesis is not closed"
                words = words[1:]
                terms.append(inner)
                continue
            words = words[1:]
            terms.append(FUNCTIONS[word] if word in FUNCTIONS and not terms else _term(word, dot, names))
        if callable(terms[0]):
            value = terms[0](*terms[1:], *(() if first else (value,)))
        else:
            assert len(terms) == 1 and first, f"{terms} is no call"
            value = terms[0]
        first = False
        if words[:1] != ["|"]:
            return value, words
        words = words[1:]


def _term(word: str, dot: Any, names: Scope) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if re.fullmatch(r"-?\d+", word):
        return int(word)
    name, *path = word.split(".")
    value = names[name] if name else dot
    for key in path:
        if key:
            value = value[key]
    return value
