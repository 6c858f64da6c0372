"""JSON schemas of many kinds, made by hypothesis; small, so that any model comes to an end of them."""

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

NAMES = st.sampled_from(["a", "b", "name", "état", "水", "x y", 'q"t', "very_long_name_of_a_field"])

leaves: st.SearchStrategy[Schema] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.tuples(st.integers(-50, 50), st.integers(0, 999)).map(
        lambda at: {"type": "integer", "minimum": at[0], "maximum": at[0] + at[1]}
    ),
    st.integers(0, 6).map(lambda most: {"type": "string", "maxLength": most}),
    st.sampled_from(["^[a-z]{2,4}$", "^(ja|nein)$", "^\\d{2}-\\d{2}$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.lists(st.sampled_from(["red", "grün", '"', "\\", 3, -1.5, None, True]), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(["x", 7, {"k": [1, "two"]}]).map(lambda value: {"const": value}),
)


def _inside(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    def closed(fields: dict[str, Schema], optional: int) -> Schema:
        names = list(fields)
        return {
            "type": "object",
            "properties": fields,
            "required": names[: len(names) - min(optional, len(names))],
            "additionalProperties": False,
        }

    return st.one_of(
        st.builds(closed, st.dictionaries(NAMES, inner, max_size=4), st.integers(0, 2)),
        st.tuples(inner, st.integers(0, 1), st.integers(1, 3)).map(
            lambda a: {"type": "array", "items": a[0], "minItems": a[1], "maxItems": a[2]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
    )


schemas = st.recursive(leaves, _inside, max_leaves=6)
objects = _inside(schemas).filter(lambda schema: schema.get("type") == "object")
