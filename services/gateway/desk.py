"""The seam between the HTTP face and what runs the requests: every public surface asks here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from millrace.messages import Chat, Decode, Decoded, Encode, Encoded, Finish, Ids, Sampling, Text, Voice
from services.gateway.visit import Visit


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
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
    visit: Visit  # whose it is, how long it may take, and its trace
    calls: int | None = 0  # tool calls that it may make; None: any number


@dataclass(frozen=True, slots=True)
class Piece:
    """One committed token."""

    token: int
    text: str  # may be empty: half a character, or held back as a possible stop string
    finish: Finish


class Answer(Protocol):
    """A live request."""

    request: str  # the internal id
    prompt_tokens: int
    thinking: bool  # the prompt has opened the reasoning
    eager: Callable[[list[Piece]], bool] | None
    """Offered new pieces the moment they are there. Those it takes (True) do not come from `pieces`."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that did not have to be computed; known with the first piece."""
        ...

    async def pieces(self) -> list[Piece]:
        """All that is there, at least one; waits for it. Not called again after a piece with a finish.

        Raises the `Failure` of a bad end.
        """
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


class Desk(Protocol):
    draining: bool

    async def open(self, ask: Ask) -> Answer:
        """Returns once the job is queued. Raises `Failure`: queue_full, context_length_exceeded, ..."""
        ...

    async def encode(self, model: str, wanted: Encode) -> Encoded:
        """What a tokenizer makes of it. Raises `Failure`."""
        ...

    async def decode(self, model: str, wanted: Decode) -> Decoded: ...

    def models(self) -> list[Model]: ...

    def missing(self) -> list[str]:
        """What readiness lacks, by name; empty when ready."""
        ...
