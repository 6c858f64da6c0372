"""The parts that an answer is made of, for every surface, streamed or whole."""

from dataclasses import dataclass, field
from typing import Literal

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
