"""An answer as server-sent events.

What is the same in every chunk of an answer is encoded once, so that a token costs a microsecond or two.
There is one chunk a token, however many came together: the bytes do not depend on timing.
"""

import asyncio
import functools
import time
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import msgspec
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Send

from millrace.errors import Failure
from millrace.messages import SpelledOdds
from services.gateway import fault
from services.gateway.desk import Answer, Piece
from services.gateway.odds import logprobs
from services.gateway.speech import Arguments, Call, Content, End, Reason, Reasoning, Saying, Speech

DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"

KEEP_ALIVE_S = 5.0
"""Proxies and clients give up on a silent connection, the strictest known ones after ten seconds."""

Headers = list[tuple[bytes, bytes]]

HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the chunks otherwise
]


class Head(msgspec.Struct, kw_only=True):
    """What every chunk, and the whole answer too, begins with."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str


class PromptDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def usage(prompt: int, completion: int, cached: int) -> Usage:
    return Usage(prompt, completion, prompt + completion, PromptDetails(cached))


_encode = msgspec.json.encode


def quoted(text: str) -> bytes:
    """The text as JSON."""
    raw = _encode(text)
    return raw if text.isascii() else _unbroken(raw)


def _unbroken(raw: bytes) -> bytes:
    """Some clients cut lines where `str.splitlines` does: these characters are escaped."""
    return (
        raw.replace(b"\xc2\x85", b"\\u0085")
        .replace(b"\xe2\x80\xa8", b"\\u2028")
        .replace(b"\xe2\x80\xa9", b"\\u2029")
    )


def named_event(name: str, data: dict[str, Any]) -> bytes:
    """An event whose name stands before its data, and in it as its type."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _unbroken(_encode({"type": name, **data})))


def _escaped(value: Any) -> bytes:
    """As JSON."""
    return _unbroken(_encode(value))


def _delta(part: Saying) -> bytes:
    match part:
        case Content(text):
            return b'{"content":' + quoted(text) + b"}"
        case Reasoning(text):  # the name that DeepSeek gave it, and the one that vLLM gives it now
            return b'{"reasoning_content":' + quoted(text) + b',"reasoning":' + quoted(text) + b"}"
        case Call(index, id, name):
            return (
                b'{"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]}'
                % (index, quoted(id), quoted(name))
            )
        case Arguments(index, text):
            return b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, quoted(text))


class Telling(Protocol):
    """How a surface tells an answer while it comes; free of I/O."""

    headers: Headers
    cached_tokens: int  # of the prompt; set before the first pieces are told

    def of(self, pieces: Iterable[Piece]) -> bytes: ...

    def waiting(self) -> bytes:
        """Something harmless, that keeps the connection from being taken for dead."""
        ...

    def failed(self, failure: Failure) -> bytes:
        """The end of an answer that had begun, never to be taken for a good one."""
        ...


class _Choice:
    """What the chunks of one answer have in common, and where it is."""

    def __init__(self, opening: bytes, shape: Literal["chat", "text"], speech: Speech, echo: str):
        self.speech = speech
        self.tokens = 0
        self.logprobs = logprobs(shape, echo)
        going_on = b',"logprobs":null,"finish_reason":null'
        self.begun = False
        self._echo = echo
        if shape == "chat":
            self.opening, self.before, self.after = opening + b'"delta":', b'{"content":', b"}"
            self.finish = self.opening + b'{},"logprobs":null,"finish_reason":"%b"'
        else:
            self.opening, self.before, self.after = opening, b'"text":', b""
            self.finish = opening + b'"text":"","logprobs":null,"finish_reason":"%b"'
        self.simply = self.opening + self.before, self.after + going_on

    def begin(self, read: list[SpelledOdds]) -> bytes:
        """The chunk before the first token, if there is one, but for its end."""
        self.begun = True
        if self.after:
            return self.opening + b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        if not self._echo:
            return b""
        odds = _escaped(self.logprobs.read(read)) if read else b"null"
        return (
            self.opening
            + self.before
            + quoted(self._echo)
            + b',"logprobs":'
            + odds
            + b',"finish_reason":null'
        )

    def delta(self, part: Saying) -> bytes:
        if self.after:
            return _delta(part)
        assert isinstance(part, Content), f"a completion says nothing but text: {part}"
        return self.before + quoted(part.text)


class Events:
    """OpenAI's chunks."""

    headers = HEADERS

    def __init__(
        self,
        head: Head,
        shape: Literal["chat", "text"],
        prompt_tokens: int,
        *,
        include_usage: bool = False,
        continuous_usage: bool = False,
        token_ids: bool = False,
        logprobs: bool = False,
        speeches: list[Speech] | None = None,
        echoes: list[str] | None = None,
    ):
        """`speeches`: what may tell the text of each choice apart, in a chat; `echoes`: each one's prompt."""
        opening = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._usage_opening = opening + b'],"usage":'
        self._prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self._include_usage = include_usage
        self._continuous = include_usage and continuous_usage
        self._token_ids = token_ids
        self._logprobs = logprobs
        speeches = speeches or [Speech()]
        self._choices = [
            _Choice(opening + b'{"index":%d,' % index, shape, speech, echo)
            for index, (speech, echo) in enumerate(zip(speeches, echoes or [""] * len(speeches), strict=True))
        ]
        self._going_on = len(self._choices)
        # OpenAI's chunks say `usage: null` until the last one, but only if that one is wanted.
        self._end = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"
        self._simple = not (token_ids or logprobs or self._continuous) and all(s.plain for s in speeches)

    def of(self, pieces: Iterable[Piece]) -> bytes:
        out: list[bytes] = []
        for piece in pieces:
            choice = self._choices[piece.choice]
            if not choice.begun and (first := choice.begin(piece.read if self._logprobs else [])):
                out += (first, self._closing(choice))
            choice.tokens += not piece.silent
            finish: Reason | Literal[""] = piece.finish
            if not self._simple:
                finish = self._told(choice, piece, out)
            elif piece.text:
                before, after = choice.simply
                out += (before, quoted(piece.text), after, self._end)
            if finish:
                out.append(choice.finish.replace(b"%b", finish.encode()) + self._closing(choice))
                self._going_on -= 1
        if not self._going_on:
            if self._include_usage:
                tokens = sum(choice.tokens for choice in self._choices)
                out += (self._usage_opening, self._usage(tokens), b"}\n\n")
            out.append(DONE)
        return b"".join(out)

    def _told(self, choice: _Choice, piece: Piece, out: list[bytes]) -> Reason | Literal[""]:
        """The chunks of what a piece says: one a part, the first with the token. Returns why it ends."""
        deltas: list[bytes] = []
        finish: Reason | Literal[""] = ""
        for part in choice.speech.hear(piece):
            if isinstance(part, End):
                finish = part.reason
            else:
                deltas.append(choice.delta(part))
        odds = _escaped(choice.logprobs.of(piece)) if self._logprobs else b"null"
        ids = b',"token_ids":[%d]' % piece.token if self._token_ids else b""
        if (self._token_ids or self._logprobs) and not deltas and not piece.silent:
            deltas.append(choice.before + b'""' + choice.after)
        for delta in deltas:
            out += (choice.opening, delta, b',"logprobs":', odds, b',"finish_reason":null', ids)
            out.append(self._closing(choice))
            odds, ids = b"null", b""
        return finish

    def waiting(self) -> bytes:
        return WAITING

    def failed(self, failure: Failure) -> bytes:
        """An error event and never [DONE]."""
        return b"data: " + fault.body(failure) + b"\n\n"

    def _closing(self, choice: _Choice) -> bytes:
        """With the usage so far: of this choice alone, or the bytes would depend on how many there are."""
        return b'}],"usage":' + self._usage(choice.tokens) + b"}\n\n" if self._continuous else self._end

    def _usage(self, tokens: int) -> bytes:
        return _encode(usage(self._prompt_tokens, tokens, self.cached_tokens))


class Direct(Protocol):
    """The client's connection, when it can be had: the way that saves waking a task for each token."""

    @property
    def clear(self) -> bool: ...

    def push(self, part: bytes) -> None: ...


class EventStream:
    """Sends an answer's events as they come, and a sign of life whenever nothing came for a while.

    Headers wait for the first of these, so that an answer that fails before it begins is an error with
    its own status. If the client does not read, `send` blocks and the pieces wait where they are.
    """

    def __init__(self, send: Send, direct: Direct | None = None, *, keep_alive_s: float = KEEP_ALIVE_S):
        self.started = False
        self._telling: Telling
        self._send = send
        self._direct = direct
        self._keep_alive_s = keep_alive_s
        self._sending = False
        self._sent_at = time.monotonic()

    async def run(self, answer: Answer, events: Telling) -> None:
        self._telling = events
        waiting = asyncio.ensure_future(self._keep_alive())
        answer.eager = functools.partial(self._eager, events)
        try:
            while True:
                pieces = await answer.pieces()
                events.cached_tokens = answer.cached_tokens
                body = events.of(pieces)
                if answer.ended:
                    break
                if body:
                    await self._write(body)
        finally:
            answer.eager = None
            waiting.cancel()
            await asyncio.wait((waiting,))
        # In one write with the end of the body: the SDK waits for no more than 100 ms after [DONE].
        await self._write(body, more=False)

    def _eager(self, events: Telling, pieces: list[Piece]) -> bool:
        """Pieces from the middle of an answer go straight to a client that keeps up."""
        direct = self._direct
        if direct is None or not self.started or self._sending or pieces[-1].finish or not direct.clear:
            return False
        if body := events.of(pieces):
            direct.push(body)
            self._sent_at = time.monotonic()
        return True

    async def fail(self, failure: Failure) -> None:
        """The end of a stream that had begun."""
        await self._write(self._telling.failed(failure), more=False)

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        self._sending = True
        if not self.started:
            self.started = True
            start: HTTPResponseStartEvent = {
                "type": "http.response.start",
                "status": 200,
                "headers": self._telling.headers,
            }
            await self._send(start)
        event: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": more}
        await self._send(event)
        self._sending = False
        self._sent_at = time.monotonic()

    async def _keep_alive(self) -> None:
        while True:
            quiet = time.monotonic() - self._sent_at
            if quiet < self._keep_alive_s:
                await asyncio.sleep(self._keep_alive_s - quiet)
            elif self._sending:  # the client is not reading what it has
                await asyncio.sleep(self._keep_alive_s)
            else:
                await self._write(self._telling.waiting())
