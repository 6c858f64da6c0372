"""What a ledger wants done: for the gateway's actor to carry out."""

from msgspec import Struct

from millrace import messages as m
from millrace.subjects import Send, Subject


class Probe(Struct, frozen=True):
    """Ping it; feed the answer to `pong`, its absence to `unanswered`."""

    subject: Subject
    to: str
    ping: m.Ping


class Settle(Struct, frozen=True):
    lease: str
    verb: str


class Delete(Struct, frozen=True):
    seq: int


class Check(Struct, frozen=True):
    """Is the job still stored? If not, tell `missing`."""

    request: str
    seq: int


class Resubmit(Struct, frozen=True):
    prompt: m.Prompt


class Bury(Struct, frozen=True):
    letter: m.DeadLetter


class Lost(Struct, frozen=True):
    """It was taken from its engine. Told, so that people can see it."""

    request: str
    engine: str
    reason: str


Effect = Send | Probe | Settle | Delete | Check | Resubmit | Bury | Lost
