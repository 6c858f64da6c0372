"""Objects whose properties are listed, and which have no others."""

import json
from typing import Any

import pytest

from services.tokenizer.closed import close

SHUT: Any = {"additionalProperties": False}
A: Any = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
B: Any = {"properties": {"b": {"type": "integer"}}, "required": ["b"]}
TAGGED: Any = [
    {"properties": {"kind": {"const": kind}, "n": {"type": "integer"}}, "required": ["kind"]}
    for kind in ("one", "two")
]
MANY: Any = {"allOf": [{"$ref": "#/$defs/A"}, B]}


def made(schema: Any) -> Any:
    """Of a copy, as it comes over the wire: no part of it stands in two places."""
    return close(json.loads(json.dumps(schema)))


def shut(*objects: Any) -> Any:
    closed = [item | SHUT for item in objects]
    return closed if len(closed) > 1 else closed[0]


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (A, shut(A)),
        ({"type": ["object", "null"], **A}, shut({"type": ["object", "null"], **A})),
        ({"type": "object", "properties": {}}, shut({"type": "object", "properties": {}})),
        ({"items": A}, {"items": shut(A)}),
        ({"items": [A], "additionalItems": B}, {"items": [shut(A)], "additionalItems": shut(B)}),
        ({"prefixItems": [A, True]}, {"prefixItems": [shut(A), True]}),
        ({"additionalProperties": A}, {"additionalProperties": shut(A)}),
        ({"patternProperties": {"^x": A}}, {"patternProperties": {"^x": shut(A)}}),
        ({"anyOf": [A, B, {"type": "null"}]}, {"anyOf": [*shut(A, B), {"type": "null"}]}),
        ({"properties": {"p": A}, **SHUT}, {"properties": {"p": shut(A)}, **SHUT}),
        ({"properties": {"p": A}, "additionalProperties": True}, None),
        ({"$ref": "#/$defs/A", "title": "t", "$defs": {"A": A}}, None),
        ({"allOf": [{"$ref": "#/$defs/A"}], "default": {}, "$defs": {"A": A}}, None),
        ({"$ref": "#/d/A~1~0 %25", "d": {"A/~ %": A}}, {"$ref": "#/d/A~1~0 %25", "d": {"A/~ %": shut(A)}}),
        ({"properties": {"$ref": A, "enum": A, "anyOf": A}}, None),
        ({"properties": {"next": {"$ref": "#"}}}, shut({"properties": {"next": {"$ref": "#"}}})),
        ({"oneOf": TAGGED}, {"oneOf": shut(*TAGGED)}),
        ({"oneOf": [A, B, {"type": "null"}]}, {"oneOf": [*shut(A, B), {"type": "null"}]}),
        ({"minProperties": 1, **A}, shut({"minProperties": 1, **A})),
    ],
)
def test_what_lists_its_properties_has_no_others(schema: Any, closed: Any) -> None:
    """Wherever it stands: without `closed`, every object that is A is the one that is closed."""
    expected = closed or json.loads(json.dumps(schema).replace(json.dumps(A), json.dumps(shut(A))))
    if closed is None and "properties" in schema and "additionalProperties" not in schema:
        expected |= SHUT

    assert expected == made(schema)
    assert list(made(schema)) == list(expected)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"const": A, "default": A, "examples": [A], "enum": [A], "title": "t", "x-mine": A},
        {"additionalProperties": {}, **A},
        {"unevaluatedProperties": {"type": "null"}, **A},
        {"patternProperties": {"^x": {}}, **A},
        {"properties": {"p": A}, "patternProperties": {"^p": B}},
        {"patternProperties": {"^p": A, "p$": B}},
        {"properties": {}, "required": ["a"]},
        {"properties": {"a": {}, "b": {}}, "required": ["a"], "minProperties": 2},
        {"properties": {"a": {}}, "minProperties": 1},
        {"dependentRequired": {"a": ["z"]}, **A},
        {"const": {"a": 1, "z": 1}, **A},
        {"not": A},
        {"if": A, "then": B, "else": {"properties": {"p": A}}},
        {"dependentSchemas": {"a": B}, **A},
        {"dependencies": {"a": B}},
        {"anyOf": [B, A], "properties": {"p": A}},
        {"anyOf": [B], "required": ["z"]},
        {"oneOf": [A, {"properties": {"a": {}, "b": {}}, "required": ["a", "b"]}]},
        {"oneOf": [{"$ref": "#/$defs/A"}, {"additionalProperties": {}, **B}], "$defs": {"A": A}},
        {"oneOf": [{"properties": {"a": {"const": str(n)}}, "required": ["a"]} for n in range(101)]},
        {"allOf": [A, B]},
        {"$ref": "#/$defs/A", "$defs": {"A": {"items": A}}, "items": B},
        {**MANY, "$defs": {"A": A}},
        {"anyOf": [MANY, {"type": "null"}], "$defs": {"A": {"$ref": "#/$defs/C"}, "C": A}},
        {"allOf": [{"$ref": "#anchor"}, B], "$defs": {"A": {"$anchor": "anchor", **A}}},
        {"items": A, "$dynamicRef": "#meta"},
        {"allOf": [{"$ref": "https://example.org/a"}, B], "items": A},
        {"items": {"$id": "https://example.org/a", "$ref": "#/$defs/A", "$defs": {"A": A}}},
        {"properties": 1, "items": 1, "anyOf": 1, "$ref": 1, "$defs": 1, "required": 1},
        {"properties": {"a": {}}, "required": [["a"]]},
        {"properties": {"a": {}}, "minProperties": "1"},
    ],
)
def test_what_may_have_others_is_let_be(schema: Any) -> None:
    """Where more is said elsewhere, where it says so itself, and in what is no schema."""
    assert schema == made(schema)


def test_what_is_used_in_two_ways_stays_open() -> None:
    """A definition that is extended somewhere; what it does not share is closed."""
    schema = {"items": {"$ref": "#/$defs/A"}, "additionalProperties": MANY, "$defs": {"A": A, "C": A}}
    closed = made(schema)

    assert {"A": A, "C": shut(A)} == closed["$defs"]
    assert MANY == closed["additionalProperties"]
