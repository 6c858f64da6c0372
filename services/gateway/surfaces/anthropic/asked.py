"""What Anthropic's clients ask, and the same as OpenAI's clients would ask it."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from services.gateway.desk import Ask, Model
from services.gateway.http.body import refused
from services.gateway.surfaces import chat
from services.gateway.surfaces.openai.wire import (
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    Cache,
    Share,
    Stop,
    Tokens,
)
from services.gateway.visit import Visit

OURS = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config",
    "parallel_tool_calls": "tool_choice",
}
"""Our parameters by their names here. Of reasoning, `names` knows by which it was asked for."""


class Block(Struct, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    cache_control: Cache | None = None


class TextBlock(Block, tag="text"):
    text: str
    citations: None = None


class ThinkingBlock(Block, tag="thinking"):
    thinking: str
    signature: str = ""


class ToolUse(Block, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]
    caller: None = None
    toolset_name: None = None


class ToolResult(Block, tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


class UserTurn(Struct, forbid_unknown_fields=True, tag_field="role", tag="user"):
    content: str | list[TextBlock | ToolResult]


class AssistantTurn(Struct, forbid_unknown_fields=True, tag_field="role", tag="assistant"):
    content: str | list[TextBlock | ThinkingBlock | ToolUse]


class Tool(Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: Cache | None = None
    # Its input is streamed as it comes, which is what the first of them asks for.
    eager_input_streaming: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None


class Choice(Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, forbid_unknown_fields=True, kw_only=True):
    """The budget is something to aim at, not a limit, and no model that is served here can aim."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None
    display: Literal["summarized"] | None = None


class Format(Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None
    task_budget: None = None


class Metadata(Struct, forbid_unknown_fields=True):
    user_id: str | None = None


class Edits(Struct, forbid_unknown_fields=True):
    """Of what was said before: the whole of it is read, so that there are none."""

    edits: Annotated[list[Any], Meta(max_length=0)] | None = None


class Counted(Struct, forbid_unknown_fields=True, kw_only=True):
    """Of `count_tokens`: what makes a prompt."""

    model: str
    messages: Annotated[list[UserTurn | AssistantTurn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Cache | None = None
    speed: Literal["standard"] | None = None
    # Known, and refused where they ask for something.
    billing_policy: None = None
    compaction: None = None
    context_management: Edits | None = None
    mcp_servers: Annotated[list[Any], Meta(max_length=0)] | None = None


class Body(Counted, forbid_unknown_fields=True, kw_only=True):
    max_tokens: Tokens
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    inference_geo: Literal["global"] | None = None
    # Known, and refused where they ask for something.
    container: None = None
    diagnostics: None = None
    fallback_credit_token: None = None
    fallbacks: Annotated[list[Any], Meta(max_length=0)] | None = None
    thread: None = None


def ask(body: Counted, model: Model, visit: Visit) -> Ask:
    fields: dict[str, Any] = {"model": body.model, "messages": _messages(body)}
    if body.tools:
        fields["tools"] = [_tool(tool) for tool in body.tools]
    if body.tool_choice:
        fields |= _choice(body.tool_choice)
    fields["reasoning_effort"] = _effort(body, model)
    if body.output_config and body.output_config.format:
        schema = {"name": "answer", "schema": body.output_config.format.schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(body, Body):
        fields["max_completion_tokens"] = body.max_tokens
        fields["stop"] = body.stop_sequences or None
        for name in ("temperature", "top_p", "top_k"):
            fields[name] = getattr(body, name)
    return chat.ask(fields, names(body), visit)


def names(body: Counted) -> dict[str, str]:
    """Our parameters by those that this client used."""
    effort = body.output_config is not None and body.output_config.effort is not None
    return OURS | {"reasoning_effort": "output_config.effort" if effort else "thinking"}


def _messages(body: Counted) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    if body.system:
        said.append({"role": "system", "content": _text(body.system)})
    for turn in body.messages:
        if isinstance(turn, UserTurn):
            said += _user(turn)
        else:
            said.append(_assistant(turn))
    if isinstance(body.messages[-1], AssistantTurn):
        where = f"messages[{len(body.messages) - 1}]"
        raise refused(where, f"'{where}' begins the assistant's answer: that is not supported.")
    return said


def _text(content: str | list[TextBlock]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": block.text} for block in content]


def _user(turn: UserTurn) -> Iterable[dict[str, Any]]:
    """A tool's result is a message of its own; text between two of them stays between them."""
    if isinstance(turn.content, str):
        yield {"role": "user", "content": turn.content}
        return
    texts: list[TextBlock] = []
    for block in turn.content:
        if isinstance(block, TextBlock):
            texts.append(block)
            continue
        if texts:
            yield {"role": "user", "content": _text(texts)}
            texts = []
        given = block.content
        result = given if isinstance(given, str) else "\n".join(part.text for part in given or ())
        yield {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": f"Error: {result}" if block.is_error else result,
        }
    if texts or not turn.content:
        yield {"role": "user", "content": _text(texts)}


def _assistant(turn: AssistantTurn) -> dict[str, Any]:
    if isinstance(turn.content, str):
        return {"role": "assistant", "content": turn.content}
    texts = [block for block in turn.content if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in turn.content if isinstance(block, ThinkingBlock)]
    uses = [block for block in turn.content if isinstance(block, ToolUse)]
    said: dict[str, Any] = {"role": "assistant", "content": _text(texts) if texts else ""}
    if thoughts:
        said["reasoning_content"] = "\n".join(thoughts)
    if uses:
        said["tool_calls"] = [
            {
                "id": use.id,
                "function": {"name": use.name, "arguments": msgspec.json.encode(use.input).decode()},
            }
            for use in uses
        ]
    return said


def _tool(tool: Tool) -> dict[str, Any]:
    spec = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": spec}


def _choice(choice: Choice) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    match choice.type:
        case "tool":
            if not choice.name:
                raise refused("tool_choice.name", "Missing parameter: 'tool_choice.name'.")
            fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        case "any":
            fields["tool_choice"] = "required"
        case _:
            fields["tool_choice"] = choice.type
    if choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def _effort(body: Counted, model: Model) -> str | None:
    """Of a model that cannot reason, only not to reason may be asked."""
    effort = body.output_config.effort if body.output_config else None
    asked = body.thinking.type if body.thinking else None
    if asked == "enabled" and not model.voice.reasoning:
        raise refused("thinking", f"'thinking' is enabled, but the model '{model.name}' does not reason.")
    if asked == "disabled":
        return "none" if model.voice.reasoning else None
    return effort or ("medium" if asked == "enabled" else None)
