"""`/v1/messages` and `/v1/messages/count_tokens`, as Anthropic has them."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope
from msgspec import Meta, Struct

from millrace.errors import Failure
from millrace.messages import Chat, Encode, digits_of
from services.gateway import fault
from services.gateway.body import decode, refused
from services.gateway.counter import Counter, Order, at
from services.gateway.desk import Answer, Ask, Model, Piece
from services.gateway.speech import Arguments, Call, Content, End, Part, Reason, Reasoning, Speech
from services.gateway.stream import HEADERS, named_event
from services.gateway.surfaces import chat
from services.gateway.visit import Visit
from services.gateway.wire import MAX_MESSAGES, MAX_STOPS, MAX_TOOLS, Cache, Share, Stop, Tokens

OURS = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config",
    "reasoning_effort": "thinking",
    "parallel_tool_calls": "tool_choice",
}
"""Our parameters by their names here."""

STOP_REASONS: dict[Reason, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


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


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    def messages(raw: bytes, scope: Scope) -> Order:
        body = decode(Body, raw)
        model = counter.known(body.model)
        asked = ask(body, model, Visit.of(scope))

        def events(job: Answer, speech: Speech) -> "Events":
            return Events(Head(job, model), job.prompt_tokens, speech)

        async def whole(job: Answer, speech: Speech) -> bytes:
            return await told(job, Head(job, model), speech)

        return Order(
            ask=asked, model=model, streamed=bool(body.stream), events=events, whole=whole, names=OURS
        )

    async def count(raw: bytes, scope: Scope) -> dict[str, int]:
        body = decode(Counted, raw)
        model = counter.known(body.model)
        conversation = ask(body, model, Visit.of(scope)).input
        assert isinstance(conversation, Chat)
        made = await counter.desk.encode(model.name, Encode(conversation, "count"))
        return {"input_tokens": made.count}

    return [
        at("POST", "/v1/messages", counter.generating(messages)),
        at("POST", "/v1/messages/count_tokens", counter.telling(count)),
    ]


# What is asked


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
    return chat.ask(fields, OURS, visit)


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


# What is answered


class Head:
    """A message before anything of it is said."""

    def __init__(self, job: Answer, model: Model):
        self.id = "msg_" + digits_of(job.request)
        self.model = model.name

    def message(self, content: list[dict[str, Any]], ending: dict[str, Any], usage: dict[str, int]) -> Any:
        opening = {"id": self.id, "type": "message", "role": "assistant", "model": self.model}
        return {**opening, "content": content, **ending, "usage": usage}


def _usage(prompt: int, cached: int, tokens: int) -> dict[str, int]:
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": tokens,
    }


def _ending(reason: Reason | None, stopped: str = "") -> dict[str, Any]:
    if reason == "stop" and stopped:
        return {"stop_reason": "stop_sequence", "stop_sequence": stopped}
    return {"stop_reason": STOP_REASONS[reason] if reason else None, "stop_sequence": None}


def _opened(part: Part) -> dict[str, Any]:
    """The block that a part begins, with nothing in it."""
    match part:
        case Reasoning():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case Call(_, id, name):
            return {"type": "tool_use", "id": id, "name": name, "input": {}}
    return {"type": "text", "text": ""}


def _belongs(part: Part, block: dict[str, Any]) -> bool:
    """Whether the part goes on with this block."""
    match part:
        case Content():
            return bool(block["type"] == "text")
        case Reasoning():
            return bool(block["type"] == "thinking")
    return isinstance(part, Arguments)


async def told(job: Answer, head: Head, speech: Speech) -> bytes:
    blocks: list[dict[str, Any]] = []
    arguments = ""
    tokens = 0
    job.patient = True
    while True:
        for piece in await job.pieces():
            tokens += 1
            for part in speech.hear(piece):
                if isinstance(part, End):
                    ending = _ending(part.reason, piece.stopped)
                    usage = _usage(job.prompt_tokens, job.cached_tokens, tokens)
                    return msgspec.json.encode(head.message(blocks, ending, usage))
                if not blocks or not _belongs(part, blocks[-1]):
                    blocks.append(_opened(part))
                    arguments = ""
                match part:
                    case Content(text):
                        blocks[-1]["text"] += text
                    case Reasoning(text):
                        blocks[-1]["thinking"] += text
                    case Arguments(_, text):
                        arguments += text
                        blocks[-1]["input"] = _read(arguments)


def _read(arguments: str) -> dict[str, Any]:
    """A call's arguments; none as long as they are not whole."""
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


class Events:
    headers = HEADERS

    def __init__(self, head: Head, prompt_tokens: int, speech: Speech):
        self.cached_tokens = 0
        self._head: Head | None = head  # until it was told
        self._prompt_tokens = prompt_tokens
        self._speech = speech
        self._tokens = 0
        self._index = -1  # of the open block
        self._block: dict[str, Any] | None = None

    def of(self, pieces: Iterable[Piece]) -> bytes:
        out = [self._begin()]
        for piece in pieces:
            self._tokens += 1
            for part in self._speech.hear(piece):
                if isinstance(part, End):
                    out += self._end(part.reason, piece.stopped)
                else:
                    out += self._say(part)
        return b"".join(out)

    def waiting(self) -> bytes:
        return self._begin() + named_event("ping", {})

    def failed(self, failure: Failure) -> bytes:
        return named_event("error", fault.anthropic(failure))

    def _begin(self) -> bytes:
        head, self._head = self._head, None
        if head is None:
            return b""
        usage = _usage(self._prompt_tokens, self.cached_tokens, 0)
        return named_event("message_start", {"message": head.message([], _ending(None), usage)})

    def _say(self, part: Part) -> Iterable[bytes]:
        if self._block is None or not _belongs(part, self._block):
            yield self._close()
            self._index += 1
            self._block = _opened(part)
            yield named_event("content_block_start", {"index": self._index, "content_block": self._block})
        delta: dict[str, str]
        match part:
            case Content(text):
                delta = {"type": "text_delta", "text": text}
            case Reasoning(text):
                delta = {"type": "thinking_delta", "thinking": text}
            case Arguments(_, text):
                delta = {"type": "input_json_delta", "partial_json": text}
            case _:
                return
        yield named_event("content_block_delta", {"index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if self._block is None:
            return b""
        self._block = None
        return named_event("content_block_stop", {"index": self._index})

    def _end(self, reason: Reason, stopped: str) -> Iterable[bytes]:
        yield self._close()
        usage = _usage(self._prompt_tokens, self.cached_tokens, self._tokens)
        yield named_event("message_delta", {"delta": _ending(reason, stopped), "usage": usage})
        yield named_event("message_stop", {})
