"""Ollama's API: `/api/chat`, `/api/generate` and what its clients ask beside them.

Its answers are lines of JSON, streamed unless the client says no. A model is always loaded here and is
never unloaded, so that `keep_alive` changes nothing.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Meta, Raw, Struct

from millrace import __version__
from millrace.errors import Code, Failure
from services.gateway import admit, fault
from services.gateway.body import decode, refused
from services.gateway.counter import Counter, Order, at, reply, told
from services.gateway.desk import Answer, Ask, Model, Piece
from services.gateway.page import browser
from services.gateway.speech import Arguments, Call, Content, End, Part, Reason, Reasoning, Speech, Spoken
from services.gateway.speech.parts import Called
from services.gateway.stream import Headers
from services.gateway.surfaces import chat, embeddings
from services.gateway.visit import Visit
from services.gateway.wire import MAX_MESSAGES, MAX_STOPS, MAX_TOOLS, Stop, TextBody, read

RUNNING = b"Ollama is running"
"""What clients look for at `/` before they believe that there is a server."""

LATEST = ":latest"
"""What clients put behind a name without a tag."""

NEVER = "9999-12-31T23:59:59Z"

HEADERS: Headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache")]

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


class Named(Struct, forbid_unknown_fields=True, kw_only=True):
    """Of the routes that want a model's name and little else. Older clients call it `name`."""

    model: str = ""
    name: str = ""
    verbose: bool | None = None  # there is no more to tell
    stream: bool | None = None  # one line is all there is
    insecure: bool | None = None


def routes(counter: Counter) -> list[HTTPRouteHandler]:
    def known(name: str) -> Model:
        models = {model.name for model in counter.desk.models()}
        return counter.known(name if name in models else name.removesuffix(LATEST))

    def chatted(raw: bytes, scope: Scope) -> Order | bytes:
        body = decode(ChatBody, raw)
        model = known(body.model)
        if not body.messages:
            return _loaded(body, {"message": {"role": "assistant", "content": ""}})
        return _order(ask_chat(body, model, Visit.of(scope)), body, model, _message)

    def generated(raw: bytes, scope: Scope) -> Order | bytes:
        body = decode(TextRequest, raw)
        model = known(body.model)
        if not body.prompt:
            return _loaded(body, {"response": ""})
        return _order(ask_text(body, model, Visit.of(scope)), body, model, _response)

    async def show(raw: bytes, scope: Scope) -> dict[str, Any]:
        body = decode(Named, raw)
        model = known(body.model or body.name)
        voice = model.voice
        able = ["completion", *(["tools"] if voice.calls else []), *(["thinking"] if voice.reasoning else [])]
        return {
            "modelfile": f"FROM {model.name}\n",
            "parameters": "",
            "template": "",
            "details": _details(model),
            "model_info": {"general.architecture": "millrace", "millrace.context_length": model.max_len},
            "capabilities": able,
            "modified_at": _rfc3339(model.since),
        }

    async def pull(raw: bytes, scope: Scope) -> dict[str, Any]:
        body = decode(Named, raw)
        name = body.model or body.name
        try:
            known(name)
        except Failure:
            raise Failure(
                Code.MODEL_NOT_FOUND,
                f"The model '{name[:200]}' is not served here. Whoever runs this server gets it with"
                " `millrace model pull` and serves it with `millrace up --model`.",
            ) from None
        return {"status": "success"}

    async def embed(raw: bytes, scope: Scope) -> dict[str, Any]:
        model = known(decode(embeddings.Body, raw).model)
        raise refused(
            "model", f"The model '{model.name}' makes no embeddings, and no other that does is loaded."
        )

    async def tags(scope: Scope, receive: Receive, send: Send) -> None:
        models = [_tag(model) for model in counter.desk.models()]
        await told({"models": models})(scope, receive, send)

    async def running(scope: Scope, receive: Receive, send: Send) -> None:
        models = [
            _tag(model) | {"expires_at": NEVER, "size_vram": 0, "context_length": model.max_len}
            for model in counter.desk.models()
        ]
        await told({"models": models})(scope, receive, send)

    return [
        at("GET", "/", _hello),
        at("HEAD", "/", _root(b"")),
        at("POST", "/api/chat", counter.generating(chatted)),
        at("POST", "/api/generate", counter.generating(generated)),
        at("POST", "/api/show", counter.telling(show)),
        at("POST", "/api/pull", counter.telling(pull)),
        at("POST", "/api/embed", counter.telling(embed)),
        at("POST", "/api/embeddings", counter.telling(embed)),
        at("GET", "/api/tags", tags),
        at("GET", "/api/ps", running),
        at("GET", "/api/version", told({"version": __version__})),
    ]


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    """A client of Ollama wants to read these words, a person the page."""
    if browser(scope):
        await reply(send, 307, b"", (b"location", b"/ui"))
    else:
        await _root(RUNNING)(scope, receive, send)


def _root(body: bytes) -> ASGIApp:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 200, body, (b"content-type", b"text/plain; charset=utf-8"))

    return tell


def _tag(model: Model) -> dict[str, Any]:
    return {
        "name": model.name + LATEST,
        "model": model.name + LATEST,
        "modified_at": _rfc3339(model.since),
        "size": 0,  # a gateway does not have the files
        "digest": hashlib.sha256(f"{model.name}\n{model.max_len}".encode()).hexdigest(),
        "details": _details(model),
    }


def _details(model: Model) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "onnx",
        "family": model.name,
        "families": [model.name],
        "parameter_size": "",
        "quantization_level": "",
    }


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _loaded(body: Body, empty: dict[str, Any]) -> bytes:
    """The answer to a request that says nothing: it would only have had the model loaded."""
    if body.keep_alive in (0, "0", "0s", "0m"):
        raise refused("keep_alive", "'keep_alive' is 0: a model is never unloaded here.")
    opening = {"model": body.model, "created_at": _rfc3339(time.time())}
    return msgspec.json.encode({**opening, **empty, "done": True, "done_reason": "load"})


# What is asked


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
    return dataclasses.replace(made, max_tokens=limit)


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


# What is answered


class _Shape:
    """How a part of an answer lies in its line."""

    def __init__(self, chat: bool):
        self._chat = chat

    def __call__(self, content: str = "", thinking: str = "", calls: Iterable[Called] = ()) -> dict[str, Any]:
        if not self._chat:
            return {"response": content, **({"thinking": thinking} if thinking else {})}
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thinking:
            message["thinking"] = thinking
        if made := [_function(call, index) for index, call in enumerate(calls)]:
            message["tool_calls"] = made
        return {"message": message}


_message, _response = _Shape(chat=True), _Shape(chat=False)


def _function(call: Called, index: int) -> dict[str, Any]:
    return {
        "id": call.id,
        "function": {"index": index, "name": call.name, "arguments": json.loads(call.arguments or "{}")},
    }


def _whole(call: Called) -> bool:
    """Whether a call may be told: what ran out of tokens in its midst is none."""
    try:
        return isinstance(json.loads(call.arguments or "{}"), dict)
    except (ValueError, RecursionError):
        return False


def _order(ask: Ask, body: Body, model: Model, shape: _Shape) -> Order:
    def events(job: Answer, speech: Speech) -> Lines:
        return Lines(body.model, shape, job.prompt_tokens, speech, ask.visit)

    async def whole(job: Answer, speech: Speech) -> bytes:
        lines = Lines(body.model, shape, job.prompt_tokens, speech, ask.visit)
        spoken = Spoken()
        while not spoken.reason:
            for piece in await job.pieces():
                lines.count()
                for part in speech.hear(piece):
                    spoken.add(part)
        calls = [call for call in spoken.calls if _whole(call)]
        said = shape(spoken.content, spoken.reasoning, calls)
        return msgspec.json.encode(lines.line(said, spoken.reason))

    return Order(
        ask=ask, model=model, streamed=body.stream is not False, events=events, whole=whole, names=OURS
    )


class Lines:
    headers = HEADERS

    def __init__(self, model: str, shape: _Shape, prompt_tokens: int, speech: Speech, visit: Visit):
        self.cached_tokens = 0
        self._model = model
        self._shape = shape
        self._prompt_tokens = prompt_tokens
        self._speech = speech
        self._began = visit.began
        self._admitted = self._first = time.monotonic()
        self._tokens = 0
        self._calls = 0
        self._call: Called | None = None  # begun, and not yet told

    def count(self) -> None:
        self._tokens += 1
        if self._tokens == 1:
            self._first = time.monotonic()

    def of(self, pieces: Iterable[Piece]) -> bytes:
        out: list[dict[str, Any]] = []
        for piece in pieces:
            self.count()
            for part in self._speech.hear(piece):
                out += self._told(part)
        return b"".join(msgspec.json.encode(line) + b"\n" for line in out)

    def waiting(self) -> bytes:
        return msgspec.json.encode(self.line(self._shape())) + b"\n"

    def failed(self, failure: Failure) -> bytes:
        return msgspec.json.encode(fault.ollama(failure)) + b"\n"

    def line(self, said: dict[str, Any], reason: Reason | None = None) -> dict[str, Any]:
        opening = {"model": self._model, "created_at": _rfc3339(time.time()), **said, "done": bool(reason)}
        if not reason:
            return opening
        now = time.monotonic()
        return {
            **opening,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": _ns(now - self._began),
            "load_duration": 0,
            "prompt_eval_count": self._prompt_tokens,
            "prompt_eval_duration": _ns(self._first - self._admitted),
            "eval_count": self._tokens,
            "eval_duration": _ns(now - self._first),
        }

    def _told(self, part: Part) -> Iterable[dict[str, Any]]:
        """A call is told in one line, when it is whole."""
        if isinstance(part, Arguments) and self._call:
            self._call.arguments += part.text
            return
        if self._call and _whole(self._call):
            line = self.line(self._shape(calls=[self._call]))
            line["message"]["tool_calls"][0]["function"]["index"] = self._calls
            self._calls += 1
            yield line
        self._call = None
        match part:
            case Content(text):
                yield self.line(self._shape(text))
            case Reasoning(text):
                yield self.line(self._shape(thinking=text))
            case Call(_, id, name):
                self._call = Called(id, name)
            case End(reason):
                yield self.line(self._shape(), reason)


def _ns(seconds: float) -> int:
    return max(int(seconds * 1e9), 0)
