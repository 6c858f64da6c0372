"""Functions that a model may call: alone, or several under a namespace's name.

A model knows the latter as `namespace.name`, so that functions of two namespaces may have one name. A client
is told both, as it sent them.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from msgspec import Meta, Struct

from services.gateway.surfaces.openai.wire import MAX_TOOLS


class Function(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="function"):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Namespace(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="namespace"):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    tools: Annotated[list[Function], Meta(max_length=MAX_TOOLS)]


Tool = Function | Namespace


def known_as(namespace: str | None, name: str) -> str:
    """A function's name for the model."""
    return f"{namespace}.{name}" if namespace else name


def specs(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """What the model is told of each. What a namespace is said to be stands before its first function."""
    found = []
    for _, namespace, function in _each(tools):
        said = [function.description]
        if namespace and function is namespace.tools[0]:
            said.insert(0, namespace.description)
        found.append(
            {
                "name": known_as(namespace.name if namespace else None, function.name),
                "description": "\n".join(filter(None, said)) or None,
                "parameters": function.parameters,
                "strict": function.strict,
            }
        )
    return found


def homes(tools: Iterable[Tool]) -> dict[str, tuple[str, str]]:
    """The namespace, and the name in it, of each function that has one, by its name for the model."""
    return {
        known_as(namespace.name, function.name): (namespace.name, function.name)
        for _, namespace, function in _each(tools)
        if namespace
    }


def places(tools: Iterable[Tool]) -> dict[str, str]:
    """Where the client has what is `tools[...]` among `specs`; nothing where it has it there, too."""
    found = {f"tools[{number}]": place for number, (place, _, _) in enumerate(_each(tools))}
    return {ours: theirs for ours, theirs in found.items() if ours != theirs}


def _each(tools: Iterable[Tool]) -> Iterator[tuple[str, Namespace | None, Function]]:
    for index, tool in enumerate(tools):
        if isinstance(tool, Function):
            yield f"tools[{index}]", None, tool
        else:
            for inner, function in enumerate(tool.tools):
                yield f"tools[{index}].tools[{inner}]", tool, function
