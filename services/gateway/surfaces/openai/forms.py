"""What a request wants its answer to be, by whatever name it says so."""

from typing import Any

import msgspec

from millrace.messages import Form
from services.gateway.http.body import depth, refused
from services.gateway.surfaces.openai.wire import Body, ChatBody

MAX_FORM_DEPTH = 64


def form(body: Body) -> Form | None:
    """The one form; refused by name if there are two, or if one is not what it should be.

    Some clients say the same by an older name too, for servers that know only that."""
    found = list(_forms(body))
    if not found:
        return None
    first = found[0]
    for other in found:
        if (first.kind, first.text) != (other.kind, other.text):
            raise refused(
                other.param,
                f"'{other.param}' and '{first.param}' both say what the answer has to be: send one of them.",
            )
    for name, wanted in (("ignore_eos", bool(body.ignore_eos)), ("min_tokens", bool(body.min_tokens))):
        if wanted:
            said = f"'{name}' cannot be kept to in an answer of a given form, which says where to end."
            raise refused(name, said)
    return first


def _forms(body: Body) -> list[Form]:
    found = []
    if isinstance(body, ChatBody) and body.response_format is not None:
        wanted = body.response_format
        if wanted.type == "json_object":
            found.append(Form("object", "", "response_format"))
        elif wanted.type == "json_schema":
            given = wanted.json_schema
            if given is None or given.schema is None:
                where = "response_format.json_schema" + (".schema" if given else "")
                raise refused(where, f"Missing parameter: '{where}'.")
            found.append(_schema(given.schema, "response_format.json_schema.schema"))
    outputs = body.structured_outputs
    if outputs is not None:
        inside = [
            *_named("structured_outputs.", outputs.json, outputs.regex, outputs.choice, outputs.grammar),
            *([Form("object", "", "structured_outputs.json_object")] if outputs.json_object else []),
        ]
        if not inside:
            raise refused("structured_outputs", "'structured_outputs' says nothing of the answer.")
        found += inside
    older = body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar
    return found + _named("guided_", *older)


def _named(
    prefix: str,
    schema: dict[str, Any] | str | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> list[Form]:
    found = []
    if schema is not None:
        found.append(_schema(schema, f"{prefix}json"))
    if regex is not None:
        found.append(Form("regex", regex, f"{prefix}regex"))
    if choice is not None:
        found.append(Form("choice", msgspec.json.encode(choice).decode(), f"{prefix}choice"))
    if grammar is not None:
        found.append(Form("grammar", grammar, f"{prefix}grammar"))
    return found


def _schema(given: dict[str, Any] | str, param: str) -> Form:
    schema: Any = given
    if isinstance(given, str):
        try:
            schema = msgspec.json.decode(given)
        except (msgspec.DecodeError, RecursionError):
            schema = None
    if not isinstance(schema, dict):
        raise refused(param, f"'{param}' is no JSON schema.")
    if not depth(schema, MAX_FORM_DEPTH):
        raise refused(param, f"'{param}' is nested deeper than {MAX_FORM_DEPTH}.")
    return Form("schema", msgspec.json.encode(schema).decode(), param)
