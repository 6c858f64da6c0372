"""A schema that lists an object's properties, and says nothing of others, means those that it lists.

JSON Schema allows any others there, and a model that is held to no more invents some. What is said of
`additionalProperties` stays, and so does an object that is described in several places at once: what one
of them does not list, another may ask for.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]

BY_NAME = ("dependentSchemas", "dependencies")
SEVERAL = ("allOf", "anyOf", "oneOf")
SAME = frozenset((*BY_NAME, *SEVERAL, "$ref", "$dynamicRef", "$recursiveRef", "not", "if", "then", "else"))
"""What holds schemas of the very value that the one around them is of."""

PROPERTIES = ("properties", "patternProperties")
DEFINED = ("$defs", "definitions")
PARTS = (
    *("items", "prefixItems", "additionalItems", "unevaluatedItems"),
    *("additionalProperties", "unevaluatedProperties"),
)
"""What holds schemas of a value's parts."""

SAID = frozenset(
    (
        *(*PROPERTIES, *PARTS, "contains", "required", "propertyNames", "minProperties", "maxProperties"),
        *("dependentRequired", "const", "enum"),
    )
)
"""What says something of a value's parts itself."""

OTHERS = frozenset(
    (
        *(*SAME, "patternProperties", "additionalProperties", "unevaluatedProperties", "dependentRequired"),
        *("const", "enum"),
    )
)
"""What may tell of properties that are not listed."""

SIMPLE = ("null", "boolean", "number", "integer", "string", "array")

COMPARED = 100
"""Branches, each with each: some hundredths of a second. More of them are let be."""


class _Elsewhere(Exception):
    """A reference to what cannot be seen."""


def close(schema: Schema) -> Schema:
    """With every object closed that may be; it is changed in its place."""
    met: dict[tuple[int, bool], Schema] = {}
    left = [(schema, False)]
    try:
        while left:
            at, shared = left.pop()
            if (id(at), shared) not in met:
                met[id(at), shared] = at
                left += _inside(schema, at, shared)
    except _Elsewhere:
        return schema
    for (key, shared), at in met.items():
        if not shared and (key, True) not in met and _closable(at):
            at["additionalProperties"] = False
    return schema


def _inside(root: Schema, at: Schema, shared: bool) -> Iterator[tuple[Schema, bool]]:
    """The schemas in one, and whether others speak of the same values as they do."""
    if "$id" in at and at is not root:
        raise _Elsewhere  # references in it do not begin at the root
    same = SAME & at.keys()
    alone = not shared and len(same) == 1 and not SAID & at.keys()
    for key in same:
        value = at[key]
        if key.endswith("Ref"):
            raise _Elsewhere  # where such a one leads, depends on the way there
        if key == "$ref":
            found = _found(root, value)
            if found is None and not alone:
                raise _Elsewhere
            yield from ((inner, not alone) for inner in _schemas([found]))
        elif key in SEVERAL:
            branches = _schemas(value)
            apart = key == "anyOf" or len(branches) == 1 or (key == "oneOf" and _exclusive(root, branches))
            yield from ((inner, not (alone and apart)) for inner in branches)
        else:
            yield from ((inner, True) for inner in _schemas(_named(value) if key in BY_NAME else value))
    shared = shared or bool(same)
    for key in PARTS:
        yield from ((inner, shared) for inner in _schemas(at.get(key)))
    # A property may be listed by its name, and by patterns besides.
    twice = len(_named(at.get("patternProperties"))) > ("properties" not in at)
    for key in PROPERTIES:
        yield from ((inner, shared or twice) for inner in _schemas(_named(at.get(key))))
    for key in DEFINED:
        yield from ((inner, False) for inner in _schemas(_named(at.get(key))))


def _exclusive(root: Schema, branches: list[Schema]) -> bool:
    """Whether an object that one of them lists is for sure nothing that another allows unlisted."""
    found = [_found(root, at["$ref"]) if at.keys() & SAME == {"$ref"} else at for at in branches]
    objects = [at for at in found if isinstance(at, dict) and at.get("type") not in SIMPLE]
    return len(objects) <= COMPARED and all(_apart(*pair) for pair in combinations(objects, 2))


def _apart(one: Schema, other: Schema) -> bool:
    first, second = _listed(one), _listed(other)
    needs, wants = set(one.get("required", ())), set(other.get("required", ()))
    if any(_differ(first[name], second[name]) for name in (needs | wants) & first.keys() & second.keys()):
        return True
    return bool(needs - second.keys() and wants - first.keys()) and _closable(one) and _closable(other)


def _listed(at: Schema) -> Schema:
    return listed if isinstance(listed := at.get("properties"), dict) else {}


def _differ(one: Any, other: Any) -> bool:
    """Whether two properties are tags, and not the same."""
    first, second = _texts(one), _texts(other)
    return bool(first and second) and not set(first) & set(second)


def _texts(tag: Any) -> list[str]:
    if not isinstance(tag, dict):
        return []
    given = [tag["const"]] if "const" in tag else tag.get("enum")
    return given if isinstance(given, list) and all(isinstance(value, str) for value in given) else []


def _schemas(value: Any) -> list[Schema]:
    if isinstance(value, dict):
        return [value]
    return [inner for inner in value if isinstance(inner, dict)] if isinstance(value, list) else []


def _named(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _found(root: Schema, reference: Any) -> Any:
    """What a reference stands for; none, if that cannot be seen."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    at: Any = root
    for part in [part.replace("~1", "/").replace("~0", "~") for part in unquote(reference).split("/")[1:]]:
        if isinstance(at, dict):
            at = at.get(part)
        elif isinstance(at, list) and part.isascii() and part.isdecimal() and int(part) < len(at):
            at = at[int(part)]
        else:
            return None
    return at


def _closable(at: Schema) -> bool:
    listed, required, least = at.get("properties"), at.get("required", []), at.get("minProperties", 0)
    return (
        isinstance(listed, dict)
        and not OTHERS & at.keys()
        and isinstance(required, list)
        and all(isinstance(name, str) and name in listed for name in required)
        and isinstance(least, int | float)
        and least <= len(set(required))  # those that are not required need not be there
    )
