"""Answers as Ollama tells them: lines of JSON, or one."""

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from millrace.errors import Failure
from services.gateway.desk import Answer, Ask, Model, Piece
from services.gateway.http import fault
from services.gateway.http.counter import Order
from services.gateway.http.stream import Headers
from services.gateway.speech import Arguments, Call, Content, End, Part, Reason, Reasoning, Speech, Spoken
from services.gateway.speech.parts import Called
from services.gateway.surfaces.ollama.asked import OURS, Body
from services.gateway.visit import Visit

HEADERS: Headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache")]


class Shape:
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


message, response = Shape(chat=True), Shape(chat=False)


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


def order(ask: Ask, body: Body, model: Model, shape: Shape) -> Order:
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

    def __init__(self, model: str, shape: Shape, prompt_tokens: int, speech: Speech, visit: Visit):
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
        opening = {"model": self._model, "created_at": rfc3339(time.time()), **said, "done": bool(reason)}
        if not reason:
            return opening
        now = time.monotonic()
        return {
            **opening,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": ns(now - self._began),
            "load_duration": 0,
            "prompt_eval_count": self._prompt_tokens,
            "prompt_eval_duration": ns(self._first - self._admitted),
            "eval_count": self._tokens,
            "eval_duration": ns(now - self._first),
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


def ns(seconds: float) -> int:
    return max(int(seconds * 1e9), 0)


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
