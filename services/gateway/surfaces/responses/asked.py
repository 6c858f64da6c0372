"""What `/v1/responses` takes, and what of it is a chat."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from services.gateway.desk import Ask
from services.gateway.http.body import refused
from services.gateway.surfaces import chat
from services.gateway.surfaces.openai.wire import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Break,
    Caching,
    Effort,
    Share,
    Tier,
    Tokens,
)
from services.gateway.surfaces.responses import functions
from services.gateway.surfaces.responses.unfolding import turns_of
from services.gateway.visit import Visit

OURS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Our parameters by their names here."""

SAME = ("temperature", "top_p", "top_k", "seed", "ignore_eos")


class Part(Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["input_text", "output_text", "reasoning_text", "summary_text"]
    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Meta(max_length=0)] | None = None
    prompt_cache_breakpoint: Break | None = None


class Item(Struct, forbid_unknown_fields=True, kw_only=True):
    """A message, a call, a call's result or reasoning: what is sent, and what a response had as output."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    namespace: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None
    # What the SDK's own items carry when they are sent back, always empty here.
    encrypted_content: None = None
    caller: None = None


NEEDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class Named(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="function"):
    name: str


class Allowed(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: list[Named]


class Format(Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    effort: Effort | None = None
    summary: Literal["auto"] | None = None  # the best there is: none
    generate_summary: Literal["auto"] | None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_obfuscation: Literal[False] | None = None


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1)]
    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    tools: Annotated[list[functions.Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Named | Allowed | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    # By the names vLLM users know.
    seed: int | None = None
    top_k: int | None = None
    ignore_eos: bool | None = None
    # Known, and refused where they ask for something.
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    # Reasoning is told in plain text, and heard again: nothing is missing where it is not encrypted.
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    top_logprobs: Literal[0] | None = None
    conversation: None = None
    max_tool_calls: None = None
    prompt: None = None
    context_management: None = None
    moderation: None = None
    # Accepted and ignored: they change nothing in an answer.
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: Caching | None = None
    service_tier: Tier | None = None
    client_metadata: dict[str, str] | None = None  # Codex's word of itself


def turns(body: Body) -> list[dict[str, Any]]:
    """The input as a chat's messages."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    said: list[dict[str, Any]] = []
    spoken: list[dict[str, Any]] = []  # items of the assistant's, one after the other
    for index, item in enumerate(body.input):
        for name in NEEDS[item.type]:
            if getattr(item, name) is None:
                raise refused(f"input[{index}].{name}", f"Missing parameter: 'input[{index}].{name}'.")
        if item.type == "function_call_output" or (item.type == "message" and item.role != "assistant"):
            said += turns_of(spoken)
            spoken = []
            said.append(_heard(item))
        else:
            spoken.append(_spoken(item))
    return said + turns_of(spoken)


def _heard(item: Item) -> dict[str, Any]:
    if item.type == "message":
        return {"role": item.role, "content": _text(item.content)}
    return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}


def _spoken(item: Item) -> dict[str, Any]:
    if item.type == "function_call":
        return {name: getattr(item, name) for name in ("type", "call_id", "namespace", "name", "arguments")}
    return {"type": item.type, "content": [{"text": _text(item.content)}]}


def _text(content: str | list[Part] | None) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content or ())


def ask(body: Body, before: Iterable[dict[str, Any]], visit: Visit) -> Ask:
    """`before`: the turns of the responses that this one follows."""
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": [*instructions, *before],
        "max_completion_tokens": body.max_output_tokens,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        **{name: getattr(body, name) for name in SAME},
    }
    if body.tools:
        fields["tools"] = [{"type": "function", "function": spec} for spec in functions.specs(body.tools)]
    fields["tool_choice"] = _choice(body.tool_choice)
    fields["response_format"] = _format(body.text.format if body.text else None)
    return chat.ask(fields, names(body), visit)


def names(body: Body) -> dict[str, str]:
    """This request's own words for what is wrong with it."""
    return OURS | functions.places(body.tools or ())


def _choice(choice: str | Named | Allowed | None) -> Any:
    match choice:
        case Named(name=name):
            return _one(name)
        case Allowed(mode=mode, tools=tools):
            allowed = {"mode": mode, "tools": [_one(tool.name) for tool in tools]}
            return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice


def _one(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _format(given: Format | None) -> dict[str, Any] | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return {"type": "json_object"}
    for name in ("name", "schema"):
        if getattr(given, name) is None:
            raise refused(f"text.format.{name}", f"Missing parameter: 'text.format.{name}'.")
    schema = {"name": given.name, "schema": given.schema, "strict": given.strict}
    return {"type": "json_schema", "json_schema": schema}


def repeated(body: Body) -> dict[str, Any]:
    """What the response object says again of the request, with the defaults that it took."""
    text = body.text or TextConfig()
    shown = text.format or Format(type="text")
    effort = body.reasoning.effort if body.reasoning else None
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": _given(shown), "verbosity": text.verbosity or "medium"},
        "tool_choice": msgspec.to_builtins(body.tool_choice) if body.tool_choice else "auto",
        "tools": [msgspec.to_builtins(tool) for tool in body.tools or ()],
        "top_logprobs": 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _given(shown: Format) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(shown).items() if value is not None}
