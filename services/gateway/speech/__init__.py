"""What an answer says: its text told apart, and the same parts for every surface, streamed or whole.

    Speech     one answer's pieces in, parts out
    parts      Content, Reasoning, Call and its Arguments; End is the last one, once
    Spoken     all parts of an answer put together, for a surface that answers in one go

A surface renders parts and nothing else. Joined, they do not depend on how the text was cut into pieces:
a parser holds back what may still become a tag, and never loses what turned out to be none.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from services.gateway.desk import Answer, Ask, Model, Piece

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Content:
    text: str  # never empty


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str  # never empty


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call begins; `index` counts an answer's calls from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, which joined are the JSON text of an object."""

    index: int
    text: str  # never empty


@dataclass(frozen=True, slots=True)
class End:
    reason: Reason


Saying = Content | Reasoning | Call | Arguments
Part = Saying | End


class Parser(Protocol):
    """Text in, as it comes; parts out."""

    def feed(self, text: str) -> list[Saying]: ...

    def finish(self) -> list[Saying]:
        """What was held back, when there is no more text."""
        ...


class Speech:
    """Of one answer. Without a parser all text is content: `plain`, for surfaces that have a faster way."""

    def __init__(self, parser: Parser | None = None):
        self._parser = parser
        self._called = False

    @property
    def plain(self) -> bool:
        return self._parser is None

    def hear(self, piece: Piece) -> list[Part]:
        parts: list[Part] = [*self._parsed(piece)]
        self._called = self._called or any(isinstance(part, Call) for part in parts)
        if piece.finish:
            parts.append(End("tool_calls" if self._called and piece.finish == "stop" else piece.finish))
        return parts

    def _parsed(self, piece: Piece) -> list[Saying]:
        if self._parser is None:
            return [Content(piece.text)] if piece.text else []
        parts = self._parser.feed(piece.text) if piece.text else []
        return _joined(parts + self._parser.finish() if piece.finish else parts)


def listen(ask: Ask, model: Model, answer: Answer) -> Speech:
    """What tells this answer's text apart: by how the model speaks, and what the request gave it to say."""
    return Speech()


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


@dataclass(slots=True)
class Called:
    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Spoken:
    content: str = ""
    reasoning: str = ""
    calls: list[Called] = field(default_factory=list)
    reason: Reason | None = None  # None until the End

    def add(self, part: Part) -> None:
        match part:
            case Content(text):
                self.content += text
            case Reasoning(text):
                self.reasoning += text
            case Call(_, id, name):
                self.calls.append(Called(id, name))
            case Arguments(index, text):
                self.calls[index].arguments += text
            case End(reason):
                self.reason = reason
