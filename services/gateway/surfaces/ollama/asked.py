"""What Ollama's clients ask, and the same as OpenAI's clients would ask it."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct, structs

from millrace.errors import Failure
from services.gateway.desk import Ask, Model
from services.gateway.http import fault
from services.gateway.http.body import refused
from services.gateway.surfaces import chat
from services.gateway.surfaces.openai import admit
from services.gateway.surfaces.openai.wire import MAX_MESSAGES, MAX_STOPS, MAX_TOOLS, Stop, TextBody, read
from services.gateway.visit import Visit

OURS = {
    "max_completion_tokens": "options.num_predict",
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format": "format",
    "reasoning_effort": "think",
    **{name: f"options.{name}" for name in ("temperature", "top_p", "top_k", "min_p", "stop", "seed")},
    **{name: f"options.{name}" for name in ("presence_penalty", "frequency_penalty")},
}
"""Our parameters by their names here."""

DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""What Ollama samples with, where neither client nor model say anything."""


class Function(Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    arguments: dict[str, Any] = {}
    index: int | None = None
    description: str | None = None


class ToolCall(Struct, forbid_unknown_fields=True, kw_only=True):
    function: Function
    id: str | None = None
    type: Literal["function"] | None = None


class Message(Struct, forbid_unknown_fields=True, kw_only=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: Annotated[list[Any], Meta(max_length=0)] | None = None  # only text is read


class Options(Struct, forbid_unknown_fields=True, kw_only=True):
    num_predict: Annotated[int, Meta(ge=-2, le=2**31 - 1)] | None = None  # below 0: what there is room for
    num_ctx: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None  # below 0: any
    stop: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | Stop | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Literal[-1, 0] | None = None  # all that was said, or nothing
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    # How their server loads a model: nothing of an answer depends on it.
    numa: bool | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    num_keep: int | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: float | str | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None


class ChatBody(Body, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[Message], Meta(max_length=MAX_MESSAGES)] = []
    tools: Annotated[list[Raw], Meta(max_length=MAX_TOOLS)] | None = None


class TextRequest(Body, forbid_unknown_fields=True, kw_only=True):
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    # Known, and refused where they say something.
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    context: Annotated[list[int], Meta(max_length=0)] | None = None
    images: Annotated[list[Any], Meta(max_length=0)] | None = None


def ask_chat(body: ChatBody, model: Model, visit: Visit) -> Ask:
    fields = _fields(body, model)
    fields["messages"] = list(_turns(body.messages))
    fields["tools"] = body.tools or None
    return chat.ask(fields, OURS, visit)


def ask_text(body: TextRequest, model: Model, visit: Visit) -> Ask:
    fields = _fields(body, model)
    if not body.raw:
        system = [{"role": "system", "content": body.system}] if body.system else []
        fields["messages"] = [*system, {"role": "user", "content": body.prompt}]
        return chat.ask(fields, OURS, visit)
    if body.system:
        raise refused("system", "'system' has no place in a prompt that is 'raw'.")
    del fields["reasoning_effort"], fields["response_format"]
    if body.format:
        raise refused("format", "'format' is not supported where 'raw' is set.")
    limit = fields.pop("max_completion_tokens")
    try:
        given = read(TextBody, msgspec.json.encode(fields | {"prompt": body.prompt}))
        (made,) = admit.completion(given, visit)
    except Failure as failure:
        raise fault.renamed(failure, OURS) from None
    return structs.replace(made, max_tokens=limit)


def _fields(body: Body, model: Model) -> dict[str, Any]:
    options = body.options or Options()
    if options.num_ctx is not None and options.num_ctx > model.max_len:
        raise refused(
            "options.num_ctx",
            f"'options.num_ctx' is {options.num_ctx}, more than the model's {model.max_len} tokens.",
        )
    if options.num_predict == 0:
        raise refused("options.num_predict", "'options.num_predict' is 0: at least one token is generated.")
    fields: dict[str, Any] = {"model": model.name, **DEFAULTS}
    same = ("temperature", "top_k", "top_p", "min_p", "stop", "presence_penalty", "frequency_penalty")
    fields |= {name: value for name in same if (value := getattr(options, name)) is not None}
    fields["max_completion_tokens"] = (
        options.num_predict if options.num_predict and options.num_predict > 0 else None
    )
    fields["seed"] = options.seed if options.seed is None or options.seed >= 0 else None
    fields["repetition_penalty"] = 1.0 if options.repeat_last_n == 0 else options.repeat_penalty
    fields["reasoning_effort"] = _effort(body, model)
    fields["response_format"] = _format(body.format)
    return fields


def _effort(body: Body, model: Model) -> str | None:
    """Of a model that cannot reason, only not to reason may be asked."""
    if not model.voice.reasoning:
        if body.think:
            raise refused("think", f"The model '{model.name}' does not support thinking.")
        return None
    if isinstance(body.think, str):
        return body.think
    return {True: "medium", False: "none", None: None}[body.think]


def _format(given: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(given, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given, "strict": True}}
    return {"type": "json_object"} if given else None


def _turns(messages: list[Message]) -> Iterable[dict[str, Any]]:
    """Calls have no ids here: a result belongs to the first open call of its tool's name."""
    opened: list[tuple[str, str]] = []  # ids and names
    for index, message in enumerate(messages):
        said: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            said["reasoning_content"] = message.thinking
        if message.tool_calls:
            calls = message.tool_calls
            opened = [(call.id or f"call_{index}_{n}", call.function.name) for n, call in enumerate(calls)]
            said["tool_calls"] = [
                {"id": id, "function": {"name": name, "arguments": _json(call.function.arguments)}}
                for (id, name), call in zip(opened, calls, strict=True)
            ]
        if message.role == "tool":
            mine = [call for call in opened if message.tool_name in (None, call[1])]
            if mine:
                opened.remove(mine[0])
            said["tool_call_id"] = message.tool_call_id or (mine[0][0] if mine else f"call_{index}")
            said["name"] = message.tool_name
        yield said


def _json(arguments: dict[str, Any]) -> str:
    return msgspec.json.encode(arguments).decode()
