"""The seam between the HTTP face and what runs the requests: every public surface asks here."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from millrace.messages import (
    Chat,
    Decode,
    Decoded,
    Encode,
    Encoded,
    Form,
    Found,
    Ids,
    Sampling,
    SpelledOdds,
    Text,
    Voice,
)
from services.gateway.view import View
from services.gateway.visit import Visit


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One answer wanted, whatever the surface it was asked on."""

    model: str  # the name the client used, already known to exist
    input: Chat | Text | Ids
    sampling: Sampling
    max_tokens: int | None  # None: whatever the context has room for
    min_tokens: int = 0
    stop_ids: list[int]
    ignore_eos: bool
    stops: list[str]
    include_stop: bool
    keep_special: bool
    logprobs: int = -1  # tell each token's odds, and of so many of the likeliest; -1: tell none
    echo: bool = False  # tell the prompt's text
    visit: Visit  # whose it is, how long it may take, and its trace
    calls: int | None = 0  # tool calls that it may make; None: any number
    form: Form | None = None  # what the answer has to be
    vector: bool = False  # the answer is one
    cut: bool = False  # what is too long for it, in place of a refusal


Finish = Literal["", "stop", "length"]


class Piece(msgspec.Struct, frozen=True):
    """One committed token. A struct, as it is made in a quarter of a dataclass's time."""

    token: int
    text: str  # may be empty: half a character, or held back as a possible stop string
    finish: Finish
    odds: SpelledOdds | None = None
    choice: int = 0  # of several answers to one request
    stopped: str = ""  # the stop string that ended the answer
    vector: bytes = b""  # little-endian fp32: the answer
    read: list[SpelledOdds] = []  # with the first, if asked for: the prompt's tokens
    silent: bool = False  # it only ends an answer of no tokens


class Answer(Protocol):
    """A live request."""

    request: str  # the internal id
    thinking: bool  # the prompt has opened the reasoning
    echoes: list[str]
    """The prompt's text, for each choice; empty where nobody asked for it."""

    news: asyncio.Event
    """Set when `ready` has something to say. Several answers may share one."""

    eager: Callable[[list[Piece]], bool] | None
    """Offered new pieces the moment they are there. Those it takes (True) do not come from `pieces`."""

    patient: bool
    """Set by a reader that tells all at once: it is woken at the end, and when many pieces are there."""

    @property
    def ended(self) -> bool:
        """Whether the last piece was given out."""
        ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that did not have to be computed; known with the first piece."""
        ...

    def ready(self) -> list[Piece]:
        """All that is there; perhaps nothing. Raises the `Failure` of a bad end."""
        ...

    async def pieces(self) -> list[Piece]:
        """The same, but waits until there is something. Not called again after the end."""
        ...

    def cancel(self) -> None:
        """Let go. May be called twice, and after the end; never waits."""
        ...


SILENT = Voice()
"""Content and nothing else."""


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    max_len: int
    since: int  # unix seconds
    voice: Voice = SILENT
    vectors: int = 0  # the size of those that it makes; 0: it makes text


class Onlooker(Protocol):
    """Who looks on as requests come and go."""

    def sampled(self) -> bool:
        """Whether the next one is to be traced."""
        ...

    def arrived(self, visit: Visit) -> None: ...

    def left(self, visit: Visit) -> None: ...


class Desk(Onlooker, Protocol):
    draining: bool

    @property
    def view(self) -> View: ...

    @property
    def shown(self) -> bool:
        """Whether the view is for everybody's eyes."""
        ...

    @property
    def may_kill(self) -> bool:
        """Whether whoever sees the page may end an engine, to see what happens."""
        ...

    def kill_engine(self) -> str:
        """Its id."""
        ...

    def picture(self, *, whole: bool) -> dict[str, Any]:
        """The view as it is now; `whole`: with what has been."""
        ...

    async def metrics(self) -> bytes:
        """The whole service's, as Prometheus reads them."""
        ...

    async def open(self, ask: Ask) -> Answer:
        """Returns once the job is queued. Raises `Failure`: queue_full, context_length_exceeded, ..."""
        ...

    async def encode(self, model: str, wanted: Encode) -> Encoded:
        """What a tokenizer makes of it. Raises `Failure`."""
        ...

    async def decode(self, model: str, wanted: Decode) -> Decoded: ...

    async def find(self, id: str, tenant: str, *, cancel: bool) -> Found | None:
        """A live request of the tenant's, at whatever gateway; None if there is none by this id."""
        ...

    def models(self) -> list[Model]: ...

    def missing(self) -> list[str]:
        """What readiness lacks, by name; empty when ready."""
        ...
