"""OpenAI's chunks: an answer's events, of chats and of completions.

What is the same in every chunk of an answer is encoded once, so that a token costs a microsecond or two.
There is one chunk a token, however many came together: the bytes do not depend on timing.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from millrace.errors import Failure
from millrace.messages import SpelledOdds
from services.gateway.desk import Piece
from services.gateway.http import fault
from services.gateway.http.stream import HEADERS, WAITING, escaped, quoted
from services.gateway.speech import Arguments, Call, Content, End, Reason, Reasoning, Saying, Speech
from services.gateway.surfaces.openai.odds import logprobs

DONE = b"data: [DONE]\n\n"


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
        odds = escaped(self.logprobs.read(read)) if read else b"null"
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
        opening = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":['
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
        odds = escaped(choice.logprobs.of(piece)) if self._logprobs else b"null"
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
        return msgspec.json.encode(usage(self._prompt_tokens, tokens, self.cached_tokens))
