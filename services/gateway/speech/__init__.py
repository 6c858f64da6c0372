"""What an answer says: its text told apart, and the same parts for every surface, streamed or whole.

    Speech     one answer's pieces in, parts out
    parts      Content, Reasoning, Call and its Arguments; End is the last one, once
    Spoken     all parts of an answer put together, for a surface that answers in one go

A surface renders parts and nothing else. Joined, they do not depend on how the text was cut into pieces:
a parser holds back what may still become a tag, and what turns out to be none, or no call, is content.
"""

import hashlib
from collections.abc import Callable
from typing import Protocol

from millrace.messages import Chat, Voice
from services.gateway.desk import Answer, Ask, Model, Piece
from services.gateway.speech.json_calls import Hermes, Llama3, Mistral
from services.gateway.speech.parts import (
    Arguments,
    Call,
    Content,
    End,
    Part,
    Reason,
    Reasoning,
    Saying,
    Spoken,
)
from services.gateway.speech.pythonic import Pythonic
from services.gateway.speech.reader import CallReader
from services.gateway.speech.thinking import Thinking

__all__ = [
    "Arguments",
    "Call",
    "Content",
    "End",
    "Part",
    "Reason",
    "Reasoning",
    "Saying",
    "Speech",
    "Spoken",
    "listen",
]

CALLS: dict[str, Callable[[Callable[[int], str]], CallReader]] = {
    "hermes": Hermes,
    "llama3_json": Llama3,
    "mistral": Mistral,
    "pythonic": Pythonic,
}


class Parser(Protocol):
    """Text in, as it comes; parts out."""

    def feed(self, text: str) -> list[Saying]: ...

    def finish(self) -> list[Saying]:
        """What was held back, when there is no more text."""
        ...


class Chain:
    """Two parsers: the second reads what is content to the first."""

    def __init__(self, first: Parser, second: Parser):
        self._first, self._second = first, second

    def feed(self, text: str) -> list[Saying]:
        return self._through(self._first.feed(text))

    def finish(self) -> list[Saying]:
        return self._through(self._first.finish()) + self._second.finish()

    def _through(self, parts: list[Saying]) -> list[Saying]:
        said: list[Saying] = []
        for part in parts:
            said += self._second.feed(part.text) if isinstance(part, Content) else [part]
        return said


class Speech:
    """Of one answer. Without a parser all text is content: `plain`, for surfaces that have a faster way."""

    def __init__(
        self, parser: Parser | None = None, *, most_calls: int | None = None, ends: tuple[str, ...] = ()
    ):
        """`ends`: texts of the tokens that end an answer, where such are shown and have to be left out."""
        self._parser = parser
        self._most_calls = most_calls
        self._ends = ends
        self._called = False

    @property
    def plain(self) -> bool:
        return self._parser is None

    def hear(self, piece: Piece) -> list[Part]:
        parts: list[Part] = [part for part in self._parsed(piece) if not self._too_many(part)]
        self._called = self._called or any(isinstance(part, Call) for part in parts)
        if piece.finish:
            parts.append(End("tool_calls" if self._called and piece.finish == "stop" else piece.finish))
        return parts

    def _parsed(self, piece: Piece) -> list[Saying]:
        text = piece.text
        if self._parser is None:
            return [Content(text)] if text else []
        if piece.finish == "stop":
            for end in self._ends:
                text = text.removesuffix(end)
        parts = self._parser.feed(text) if text else []
        return _joined(parts + self._parser.finish() if piece.finish else parts)

    def _too_many(self, part: Saying) -> bool:
        """A client that wants one call at a time is told of the first."""
        return (
            isinstance(part, Call | Arguments)
            and self._most_calls is not None
            and part.index >= self._most_calls
        )


def listen(ask: Ask, model: Model, answer: Answer) -> Speech:
    """What tells this answer's text apart: by how the model speaks, and what the request gave it to say."""
    voice = model.voice
    if not isinstance(ask.input, Chat):
        return Speech()
    parser: Parser | None = None
    if ask.calls != 0 and voice.calls:
        parser = CALLS[voice.calls](_ids(answer.request, voice))
    if voice.reasoning:
        thinking = Thinking(begun=answer.thinking)
        parser = Chain(thinking, parser) if parser else thinking
    return Speech(parser, most_calls=ask.calls, ends=tuple(voice.ends))


def _ids(request: str, voice: Voice) -> Callable[[int], str]:
    """Of an answer's calls: nobody else's, and the same however often the answer is looked at."""

    def id_of(index: int) -> str:
        digest = hashlib.sha256(f"{request} {index}".encode()).hexdigest()
        return digest[:9] if voice.calls == "mistral" else f"call_{digest[:24]}"  # its templates want nine

    return id_of


def _joined(parts: list[Saying]) -> list[Saying]:
    """Neighbours of a kind as one, so that a token makes no more chunks than it has things to say."""
    joined: list[Saying] = []
    for part in parts:
        match joined[-1] if joined else None, part:
            case (Content(before), Content(text)):
                joined[-1] = Content(before + text)
            case (Reasoning(before), Reasoning(text)):
                joined[-1] = Reasoning(before + text)
            case (Arguments(index, before), Arguments(_, text)):  # of one call: another begins with a Call
                joined[-1] = Arguments(index, before + text)
            case _:
                joined.append(part)
    return joined
