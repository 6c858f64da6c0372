"""Answers as Anthropic tells them: blocks, as events or in one message."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from millrace.errors import Failure
from millrace.messages import digits_of
from services.gateway.desk import Answer, Model, Piece
from services.gateway.http import fault
from services.gateway.http.stream import HEADERS, named_event
from services.gateway.speech import Arguments, Call, Content, End, Part, Reason, Reasoning, Speech

STOP_REASONS: dict[Reason, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


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
