"""Every subject, stream, consumer and limit, in one table; the NATS rights of each role follow from it."""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from millrace import messages as m


class Role(StrEnum):
    GATEWAY = "gateway"
    TOKENIZER = "tokenizer"
    ENGINE = "engine"
    DETOKENIZER = "detokenizer"
    OPERATOR = "operator"  # `millrace up`, which only watches


G, T, E, D, UP = Role.GATEWAY, Role.TOKENIZER, Role.ENGINE, Role.DETOKENIZER, Role.OPERATOR


@dataclass(frozen=True)
class Subject:
    pattern: str  # one `{}` where the addressee or the model's key goes
    carries: tuple[type[m.Message], ...]
    answers: tuple[type[m.Message], ...]  # what a request on it is answered with
    senders: tuple[Role, ...]
    hearers: tuple[Role, ...]
    why: str

    def to(self, token: str) -> str:
        if "{}" not in self.pattern:
            return self.pattern
        if not SAFE.fullmatch(token):
            raise ValueError(f"not a subject token: {token!r}")
        return self.pattern.format(token)

    @property
    def wildcard(self) -> str:
        return self.pattern.format("*")


SAFE = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True)
class Send:
    """A message and where it goes: what a state machine returns, and its actor sends."""

    subject: Subject
    to: str
    message: m.Message


TOKENIZER = Subject(
    "mr.tok.{}", (m.Prompt,), (m.Admitted, m.Refused), (G,), (T,), "queue group of a model's tokenizers"
)
JOB = Subject("mr.job.{}", (m.Job,), (), (T,), (), "stored in JOBS; pulled by the model's engines")
GATEWAY = Subject(
    "mr.gw.{}",
    (m.Claim, m.Recall, m.Delta, m.Yielded, m.Hops),
    (m.Granted, m.Wait, m.Gone, m.Opened),
    (E, D),
    (G,),
    "one boot of one gateway: it owns its requests",
)
DETOKENIZER = Subject(
    "mr.detok.{}",
    (m.Opened, m.Frame, m.Ping, m.Release),
    (m.Pong,),
    (G, E),
    (D,),
    "one boot of one detokenizer",
)
ENGINE = Subject(
    "mr.eng.{}", (m.Ping, m.Resend, m.Release), (m.Pong,), (G, D), (E,), "one boot of one engine"
)
ORPHANS = Subject("mr.orphan", (m.Orphan,), (), (E,), (G,), "queue group of the gateways")
PRESENCE = Subject("mr.here.{}", (m.Here,), (), (G, T, E, D), (G, T, E, D, UP), "who is there, by role")
DEAD = Subject("mr.dead.{}", (m.DeadLetter,), (), (G,), (), "stored in DEAD, for people to read")

SUBJECTS = (TOKENIZER, JOB, GATEWAY, DETOKENIZER, ENGINE, ORPHANS, PRESENCE, DEAD)


@dataclass(frozen=True)
class Stream:
    name: str
    subject: Subject
    retention: str
    discard: str
    max_msgs: int
    max_bytes: int
    max_msg_size: int
    max_age_s: float  # 0: for ever
    why: str

    def config(
        self,
        max_msgs: int | None = None,
        max_bytes: int | None = None,
        max_age_s: float | None = None,
        replicas: int = 1,
    ) -> dict[str, Any]:
        """The stream as JetStream's API takes it."""
        age_s = max_age_s or self.max_age_s
        return {
            "name": self.name,
            "subjects": [self.subject.wildcard],
            "retention": self.retention,
            "storage": "file",
            "discard": self.discard,
            "max_msgs": max_msgs or self.max_msgs,
            "max_bytes": max_bytes or self.max_bytes,
            "max_msg_size": self.max_msg_size,
            "max_age": int(age_s * 1e9),
            "max_consumers": -1,
            "num_replicas": replicas,
            # A publish repeated within this window is stored once: the tokenizer may be asked twice.
            # JetStream refuses a window longer than the age.
            "duplicate_window": int(min(120.0, age_s or 120.0) * 1e9),
        }


JOBS = Stream(
    "JOBS",
    JOB,
    "workqueue",
    "new",
    256,
    256 << 20,
    8 << 20,
    0.0,
    "a full queue refuses: that is the backpressure",
)
DEAD_LETTERS = Stream(
    "DEAD",
    DEAD,
    "limits",
    "old",
    10_000,
    16 << 20,
    64 << 10,
    7 * 86400.0,
    "a week of jobs that were given up",
)
STREAMS = (JOBS, DEAD_LETTERS)

ACK_WAIT_S = 1.0
"""A job whose engine died between the pull and the claim is seen by nobody but JetStream, and comes
back after this long. The owner of a claimed job renews its lease every ACK_WAIT_S / 2.5."""

PULL_EXPIRES_S = 0.2
"""A paused engine swallows the jobs of the pull it has open: so it never has one open for long."""


def consumer(model: str) -> dict[str, Any]:
    """The durable pull consumer of a model's engines.

    `max_deliver` has no limit: a message at the limit stays in the stream and keeps its place there, for
    nobody. The owner counts crashes itself and ends the job (`services/gateway/ledger.py`).
    """
    return {
        "durable_name": model,
        "filter_subject": JOB.to(model),
        "ack_policy": "explicit",
        "ack_wait": int(ACK_WAIT_S * 1e9),
        "max_deliver": -1,
        "deliver_policy": "all",
        "max_ack_pending": -1,
        "max_waiting": 512,
    }


def model_key(name: str) -> str:
    """A subject token for a model's name; distinct names stay distinct."""
    if SAFE.fullmatch(name):
        return name
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower())[:40].strip("_")
    return f"{slug}_{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def inbox_prefix(role: Role) -> str:
    return f"_INBOX_{role}"


def rights(role: Role) -> dict[str, list[str]]:
    """What this role may publish and hear, as nats-server's `permissions` block takes it."""
    api = "$JS.API"
    stores = {
        G: [
            *(f"{api}.STREAM.{verb}.{s.name}" for s in STREAMS for verb in ("CREATE", "UPDATE", "INFO")),
            f"{api}.STREAM.MSG.DELETE.{JOBS.name}",
            f"{api}.STREAM.MSG.GET.{JOBS.name}",
            f"{api}.CONSUMER.CREATE.{JOBS.name}.>",
            f"$JS.ACK.{JOBS.name}.>",
        ],
        T: [],
        E: [f"{api}.CONSUMER.MSG.NEXT.{JOBS.name}.*"],
        D: [],
        UP: [],
    }
    publish = [s.wildcard for s in SUBJECTS if role in s.senders and s is not PRESENCE]
    if role in PRESENCE.senders:
        publish.append(PRESENCE.to(role))
    # Answers go to the askers' inboxes. nats-server's own `allow_responses` would not do: a pulled job
    # arrives as a request whose answer settles it, so an engine could acknowledge its own deliveries; and
    # the server forgets what may be answered when it is restarted.
    askers = {sender for s in SUBJECTS if s.answers and role in s.hearers for sender in s.senders}
    publish += [f"{inbox_prefix(asker)}.>" for asker in askers]
    return {
        "publish": sorted(publish + stores[role]),
        "subscribe": sorted(
            [*(s.wildcard for s in SUBJECTS if role in s.hearers), f"{inbox_prefix(role)}.>"]
        ),
    }
