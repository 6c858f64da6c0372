"""One response of `/v1/responses` as it comes: its items, and every event that tells of them, numbered."""

import asyncio
import time
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec

from millrace.errors import Code, Failure
from millrace.messages import digits_of
from services.gateway.desk import Answer, Piece
from services.gateway.http.stream import HEADERS, WAITING, named_event
from services.gateway.speech import Arguments, Call, Content, End, Part, Reason, Reasoning, Speech
from services.gateway.surfaces.responses.functions import known_as


class Unfolding:
    headers = HEADERS

    def __init__(
        self,
        job: Answer,
        speech: Speech,
        asked: dict[str, Any],
        turns: list[dict[str, Any]],
        homes: dict[str, tuple[str, str]],
    ):
        """`asked`: what the response object repeats of the request; `turns`: the conversation so far;
        `homes`: functions of namespaces."""
        random = digits_of(job.request)
        self.id = f"resp_{random}"
        self.cached_tokens = 0
        self.news = asyncio.Event()  # set, and made anew, whenever there are more events or none any more
        self._job = job
        self._speech = speech
        self._random = random
        self._asked = asked
        self._turns = turns
        self._homes = homes
        self._input_size = len(msgspec.json.encode([asked, turns[-1:]]))
        self._created_at = int(time.time())
        self._status = "in_progress"
        self._completed_at: int | None = None
        self._error: dict[str, str] | None = None
        self._incomplete: dict[str, str] | None = None
        self._usage: dict[str, Any] | None = None
        self._items: list[dict[str, Any]] = []
        self._open = False  # the last of the items
        self._tokens = self._reasoning_tokens = 0
        self._log: list[bytes] = []  # of events, until it has ended
        self._log_size = 0
        self._packed = b""
        self._last_words = b""  # of one that failed

    # What it is

    @property
    def ended(self) -> bool:
        return self._status != "in_progress"

    @property
    def size(self) -> int:
        return self._input_size + (len(self._packed) or self._log_size)

    @property
    def whole(self) -> dict[str, Any]:
        """The response object, as it is now."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created_at,
            "status": self._status,
            "completed_at": self._completed_at,
            "error": self._error,
            "incomplete_details": self._incomplete,
            "output": self._items,
            "usage": self._usage,
            **self._asked,
        }

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """All turns, for a response that follows this one."""
        return [*self._turns, *turns_of(self._items)]

    def events(self, after: int) -> list[bytes]:
        """Those told so far that have a higher number."""
        log = self._log
        if self._packed:
            log = [event + b"\n\n" for event in zlib.decompress(self._packed).split(b"\n\n")[:-1]]
        return log[after + 1 :]

    # How it comes

    def of(self, pieces: Iterable[Piece]) -> bytes:
        before = len(self._log)
        self._begin()
        for piece in pieces:
            self._tokens += 1
            parts = self._speech.hear(piece)
            self._reasoning_tokens += any(isinstance(part, Reasoning) for part in parts)
            for part in parts:
                self._say(part)
        told = b"".join(self._log[before:])
        if self.ended:
            self._pack()
        self._wake()
        return told

    def waiting(self) -> bytes:
        return WAITING

    def failed(self, failure: Failure) -> bytes:
        """An error, and the response as failed if it was not cancelled. Said once, however often asked."""
        if not self._last_words:
            self._log = self.events(-1)
            before = len(self._log)
            self._begin()
            error = {"code": failure.code.value, "message": failure.message, "param": failure.param}
            self._event("error", error)
            if not self.ended:
                code = "rate_limit_exceeded" if failure.meaning.status == 429 else "server_error"
                self._error = {"code": code, "message": failure.message}
                self._stop("failed")
                self._event("response.failed", {"response": self.whole})
            self._last_words = b"".join(self._log[before:])
            self._pack()
            self._wake()
        return self._last_words

    def cancel(self) -> None:
        """By whoever may, while it is being made."""
        if not self.ended:
            self._stop("cancelled")
            self._job.cancel()
            self._pack()
            self._wake()

    def left(self, failure: Failure | None) -> None:
        """Nobody makes it any more."""
        if self.ended:
            return
        if failure is None or failure.code is Code.CANCELLED:
            self.cancel()
        else:
            self.failed(failure)

    def _begin(self) -> None:
        if not self._log:
            self._event("response.created", {"response": self.whole})
            self._event("response.in_progress", {"response": self.whole})

    def _say(self, part: Part) -> None:
        if isinstance(part, End):
            self._finish(part.reason)
            return
        if not self._open or not _belongs(part, self._items[-1]):
            self._close("completed")
            self._add(part)
        item = self._items[-1]
        match part:
            case Content(text):
                item["content"][0]["text"] += text
                self._of_part("response.output_text.delta", {"delta": text, "logprobs": []})
            case Reasoning(text):
                item["content"][0]["text"] += text
                self._of_part("response.reasoning_text.delta", {"delta": text})
            case Arguments(_, text):
                item["arguments"] += text
                self._of_item("response.function_call_arguments.delta", {"delta": text})

    def _add(self, part: Part) -> None:
        number = len(self._items)
        name = f"{self._random}_{number}"
        item: dict[str, Any]
        match part:
            case Call(_, id, function):
                item = {"id": f"fc_{name}", "type": "function_call", "status": "in_progress"}
                item |= {"call_id": id, "name": function, "arguments": ""}
                if home := self._homes.get(function):
                    item["namespace"], item["name"] = home
            case Reasoning():
                item = {"id": f"rs_{name}", "type": "reasoning", "status": "in_progress", "summary": []}
            case _:
                item = {"id": f"msg_{name}", "type": "message", "status": "in_progress", "role": "assistant"}
        content = None if isinstance(part, Call) else _empty(part)
        shown = item if content is None else {**item, "content": []}
        self._items.append(item)
        self._open = True
        self._event("response.output_item.added", {"output_index": number, "item": shown})
        if content is not None:
            self._of_part("response.content_part.added", {"part": content})
            item["content"] = [content]

    def _close(self, status: str) -> None:
        """The last item's end."""
        if not self._open:
            return
        self._open = False
        item = self._items[-1]
        item["status"] = status
        match item["type"]:
            case "function_call":
                done = {"arguments": item["arguments"], "name": item["name"]}
                self._of_item("response.function_call_arguments.done", done)
            case kind:
                (content,) = item["content"]
                if kind == "message":
                    done = {"text": content["text"], "logprobs": []}
                    self._of_part("response.output_text.done", done)
                else:
                    self._of_part("response.reasoning_text.done", {"text": content["text"]})
                self._of_part("response.content_part.done", {"part": content})
        self._event("response.output_item.done", {"output_index": len(self._items) - 1, "item": item})

    def _finish(self, reason: Reason) -> None:
        status = "incomplete" if reason == "length" else "completed"
        self._close(status)
        self._stop(status)
        if status == "incomplete":
            self._incomplete = {"reason": "max_output_tokens"}
        self._event(f"response.{status}", {"response": self.whole})

    def _stop(self, status: str) -> None:
        self._status = status
        self._completed_at = int(time.time()) if status == "completed" else None
        prompt = self._job.prompt_tokens
        self._usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self._job.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self._tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
            "total_tokens": prompt + self._tokens,
        }

    def _of_part(self, name: str, data: dict[str, Any]) -> None:
        self._of_item(name, {"content_index": 0, **data})

    def _of_item(self, name: str, data: dict[str, Any]) -> None:
        number = len(self._items) - 1
        self._event(name, {"item_id": self._items[-1]["id"], "output_index": number, **data})

    def _event(self, name: str, data: dict[str, Any]) -> None:
        event = named_event(name, {"sequence_number": len(self._log), **data})
        self._log.append(event)
        self._log_size += len(event)

    def _pack(self) -> None:
        """Events say much twice: packed they are a twentieth."""
        self._begin()
        self._packed = zlib.compress(b"".join(self._log), 1)
        self._log = []

    def _wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


def _empty(part: Part) -> dict[str, Any]:
    if isinstance(part, Reasoning):
        return {"type": "reasoning_text", "text": ""}
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _belongs(part: Part, item: dict[str, Any]) -> bool:
    """Whether the part goes on with this item."""
    match part:
        case Content():
            return bool(item["type"] == "message")
        case Reasoning():
            return bool(item["type"] == "reasoning")
    return isinstance(part, Arguments)


def turns_of(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What an assistant's items are in a chat: its reasoning, text and calls are one turn."""
    turns: list[dict[str, Any]] = []
    for item in items:
        last = turns[-1] if turns else None
        match item["type"]:
            case "reasoning":
                text = "".join(part["text"] for part in item.get("content") or ())
                turns.append({"role": "assistant", "reasoning_content": text})
            case "message":
                text = "".join(part["text"] for part in item["content"])
                if last is None or "content" in last or "tool_calls" in last:
                    turns.append(last := {"role": "assistant"})
                last["content"] = text
            case "function_call":
                if last is None:
                    turns.append(last := {"role": "assistant"})
                name = known_as(item.get("namespace"), item["name"])
                function = {"name": name, "arguments": item["arguments"]}
                last.setdefault("tool_calls", []).append({"id": item["call_id"], "function": function})
    for turn in turns:
        if "tool_calls" not in turn:
            turn.setdefault("content", "")
    return turns
