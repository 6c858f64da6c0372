"""What clients send to the OpenAI routes, and what of it is understood.

Nothing asked for is dropped in silence: an unknown parameter, a value out of range and a value that is
not supported yet are each refused with the parameter's name.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct

from services.gateway.http.body import decode, refused

MAX_MESSAGES = 2048
"""A conversation longer than this does not fit the context of any model we serve."""

MAX_STOPS = 16
MAX_STOP_CHARS = 256
"""A stop string is held back piece by piece while it may still come: long ones delay the whole answer."""

MAX_CHOICES = 128
"""Answers to one request, over all of its prompts: each takes a place in the queue."""

MAX_BIAS = 1024
"""Each entry is looked at in every step."""
MAX_TOOLS = 128
MAX_TOOL_DEPTH = 32
"""Of a function's schema. Its tools' number is OpenAI's limit."""

MAX_DEPTH = 16
"""Of `chat_template_kwargs`, which travels on to be decoded again, further down a stack."""

MAX_SEED = 2**63 - 1
"""OpenAI's, whose least is as far below zero."""

Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]


Tier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Cache(Struct, forbid_unknown_fields=True):
    """What is worth keeping, as Anthropic has it; clients that speak to both send it here too.
    Every prompt's beginning is kept, so that this changes nothing."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Break(Struct, forbid_unknown_fields=True):
    """The same, as OpenAI has it."""

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class Caching(Struct, forbid_unknown_fields=True):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class Part(Struct, forbid_unknown_fields=True):
    """One part of a message. Media are named here only to be refused by name, and never fetched."""

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    audio_url: Any = None
    video_url: Any = None
    file: Any = None
    refusal: Any = None
    cache_control: Cache | None = None
    prompt_cache_breakpoint: Break | None = None


class Function(Struct, forbid_unknown_fields=True):
    name: str
    arguments: str


class ToolCall(Struct, forbid_unknown_fields=True):
    """One the model made earlier, sent back as part of the conversation."""

    id: str
    function: Function
    type: Literal["function"] = "function"
    index: int | None = None


class Turn(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    # What the SDK's own answer objects carry when they are sent back, always empty here.
    refusal: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    # What a client library for many services noted of an answer, sent back with it.
    provider_specific_fields: dict[str, Any] | None = None
    cache_control: Cache | None = None


class Spec(Struct, forbid_unknown_fields=True):
    """A function that may be called."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema; none: it takes nothing
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    function: Spec
    type: Literal["function"] = "function"
    cache_control: Cache | None = None


class Named(Struct, forbid_unknown_fields=True):
    name: str


class OneTool(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: Named


class AllowedTools(Struct, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: list[OneTool]


class SomeTools(Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None  # it is kept to, whatever this says


class ResponseFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


Choices = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=4096)]], Meta(min_length=1, max_length=10_000)
]


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's. Of these one."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Body(Struct, kw_only=True, forbid_unknown_fields=True):
    """What both routes take. Every optional parameter may be null: the SDKs send it so."""

    model: Annotated[str, Meta(min_length=1)]
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None  # -1 and 0: no limit, as vLLM has it
    seed: Annotated[int, Meta(ge=-(2**63), le=MAX_SEED)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=MAX_BIAS)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    structured_outputs: StructuredOutputs | None = None
    # The same, by vLLM's older names.
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None  # who keeps to it is nothing that an answer shows


class ChatBody(Body, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    service_tier: Tier | None = None

    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | OneTool | SomeTools | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    modalities: list[str] | None = None
    # Known, and refused where they ask for something.
    audio: None = None
    functions: None = None
    function_call: None = None
    web_search_options: None = None
    moderation: None = None

    # Accepted and ignored: they change nothing in an answer.
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: Caching | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    prediction: Any = None


class TextBody(Body, kw_only=True, forbid_unknown_fields=True):
    """Of `/v1/completions`."""

    prompt: str | list[TokenId | str | list[TokenId]]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None  # 0: the prompt alone, echoed

    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None


def _unset(value: Any) -> bool:
    return value is None


# What a parameter may say as long as the feature behind it is missing; any other value is refused.
NOT_YET: dict[str, Callable[[Any], bool]] = {
    "modalities": lambda value: value in (None, ["text"]),
    "suffix": _unset,
}

B = TypeVar("B", ChatBody, TextBody)


def read(kind: type[B], raw: bytes) -> B:
    body = decode(kind, raw)
    for name, allowed in NOT_YET.items():
        if not allowed(getattr(body, name, None)):
            raise refused(name, f"This value of '{name}' is not supported.")
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "'stream_options' is only allowed when 'stream' is true.")
    return body
