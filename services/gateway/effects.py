"""What a ledger wants done: for the gateway's actor to carry out."""

from dataclasses import dataclass

from millrace import messages as m
from millrace.subjects import Send, Subject


@dataclass(frozen=True, slots=True)
class Probe:
    """Ping it; feed the answer to `pong`, its absence to `unanswered`."""

    subject: Subject
    to: str
    ping: m.Ping


@dataclass(frozen=True, slots=True)
class Settle:
    lease: str
    verb: str


@dataclass(frozen=True, slots=True)
class Delete:
    seq: int


@dataclass(frozen=True, slots=True)
class Check:
    """Is the job still stored? If not, tell `missing`."""

    request: str
    seq: int


@dataclass(frozen=True, slots=True)
class Resubmit:
    prompt: m.Prompt


@dataclass(frozen=True, slots=True)
class Bury:
    letter: m.DeadLetter


@dataclass(frozen=True, slots=True)
class Lost:
    """It was taken from its engine. Told, so that people can see it."""

    request: str
    engine: str
    reason: str


Effect = Send | Probe | Settle | Delete | Check | Resubmit | Bury | Lost
