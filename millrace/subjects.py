"""Every subject, stream, consumer and limit, in one table; the NATS rights of each role follow from it."""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import msgspec

from millrace import messages as m


class Role(StrEnum):
    GATEWAY = "gateway"
    TOKENIZER = "tokenizer"
    ENGINE = "engine"
    DETOKENIZER = "detokenizer"
    OPERATOR = "operator"  # `millrace up`, and people: they only look


G, T, E, D, UP = Role.GATEWAY, Role.TOKENIZER, Role.ENGINE, Role.DETOKENIZER, Role.OPERATOR


@dataclass(frozen=True)
class Subject:
    pattern: str  # with a `{}` for each of the addressee, or the keys of a model and a tenant
    carries: tuple[type[m.Message], ...]
    answers: tuple[type[m.Message], ...]  # what a request on it is answered with
    senders: tuple[Role, ...]
    hearers: tuple[Role, ...]
    why: str

    def to(self, *tokens: str) -> str:
        return _filled(self.pattern, tokens) if "{}" in self.pattern else self.pattern

    @property
    def wildcard(self) -> str:
        return self.pattern.replace("{}", "*")


@lru_cache(maxsize=1024)  # what goes to one process goes there at every step
def _filled(pattern: str, tokens: tuple[str, ...]) -> str:
    for token in tokens:
        if not SAFE.fullmatch(token):
            raise ValueError(f"not a subject token: {token!r}")
    return pattern.format(*tokens)


SAFE = re.compile(r"[a-z0-9_]{1,64}")


class Send(msgspec.Struct, frozen=True):
    """A message and where it goes: what a state machine returns, and its actor sends."""

    subject: Subject
    to: str
    message: m.Message


TOKENIZER = Subject(
    "mr.tok.{}",
    (m.Prompt, m.Encode, m.Decode),
    (m.Admitted, m.Refused, m.Encoded, m.Decoded),
    (G,),
    (T,),
    "queue group of a model's tokenizers",
)
JOB = Subject(
    "mr.job.{}.{}.{}",
    (m.Job,),
    (),
    (T,),
    (),
    "model, priority, tenant: stored in JOBS, pulled by engines",
)
BELL = Subject("mr.bell.{}", (m.Bell,), (), (G,), (E,), "to a model's engines: whose jobs are waiting")
GATEWAY = Subject(
    "mr.gw.{}",
    (m.Claim, m.Recall, m.Delta, m.Yielded, m.Holding, m.Hops),
    (m.Granted, m.Wait, m.Gone, m.Opened, m.Release),
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
FIND = Subject("mr.find", (m.Find,), (m.Found, m.Gone), (G,), (G,), "all gateways: whose request is this?")
PRESENCE = Subject("mr.here.{}", (m.Here,), (), (G, T, E, D), (G, T, E, D, UP), "who is there, by role")
DEAD = Subject("mr.dead.{}", (m.DeadLetter,), (), (G,), (), "stored in DEAD, for people to read")

SUBJECTS = (TOKENIZER, JOB, BELL, GATEWAY, DETOKENIZER, ENGINE, ORPHANS, FIND, PRESENCE, DEAD)


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
        each: int = 0,
    ) -> dict[str, Any]:
        """The stream as JetStream's API takes it; `each`: messages on one subject, 0 for no such limit."""
        age_s = max_age_s or self.max_age_s
        return {
            "name": self.name,
            "subjects": [self.subject.wildcard],
            "retention": self.retention,
            "storage": "file",
            "discard": self.discard,
            "max_msgs": max_msgs or self.max_msgs,
            "max_msgs_per_subject": each or -1,
            "discard_new_per_subject": bool(each),  # without it an older message would silently make room
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

CALL_EXPIRES_S = 0.005
"""For a tenant's jobs an engine asks when the bell has rung. The job is there within a millisecond or two,
also one that was handed back just now; or another engine has it."""


EVERYBODY = "all"
"""The key of the one tenant there is as long as there are no keys."""

UNUSED_S = 3600.0
"""A tenant's consumer goes after this long without a pull; the gateways assert it much more often."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One tenant's jobs for one model: a subject, and the durable consumer that engines pull from.

    Consumers of a work queue may not overlap, so each tenant has its own: about 50 KB in the server, and
    nothing more while it is idle.
    """

    model: str  # its key
    tenant: str = EVERYBODY  # its key
    priority: str = "normal"

    @property
    def subject(self) -> str:
        return JOB.to(self.model, self.priority, self.tenant)

    @property
    def consumer(self) -> str:
        return self.model if self.tenant == EVERYBODY else f"{self.model}-{self.priority}-{self.tenant}"


def lane_of(model: str, tenant: str, priority: str) -> Lane:
    """By the model's key and the tenant's name."""
    return Lane(model, model_key(tenant) if tenant else EVERYBODY, priority)


def consumer(lane: Lane) -> dict[str, Any]:
    """The lane's durable pull consumer.

    `max_deliver` has no limit: a message at the limit stays in the stream and keeps its place there, for
    nobody. The owner counts crashes itself and ends the job (`services/gateway/owner/ledger.py`).
    """
    config = {
        "durable_name": lane.consumer,
        "filter_subject": lane.subject,
        "ack_policy": "explicit",
        "ack_wait": int(ACK_WAIT_S * 1e9),
        "max_deliver": -1,
        "deliver_policy": "all",
        "max_ack_pending": -1,
        "max_waiting": 512,
    }
    if lane.tenant != EVERYBODY:
        config["inactive_threshold"] = int(UNUSED_S * 1e9)
    return config


def model_key(name: str) -> str:
    """A subject token for the name of a model, or of a tenant; distinct names stay distinct."""
    if SAFE.fullmatch(name):
        return name
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower())[:40].strip("_")
    return f"{slug}_{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def inbox_prefix(role: Role) -> str:
    return f"_INBOX_{role}"


def rights(role: Role, api: str = "$JS.API") -> dict[str, list[str]]:
    """What this role may publish and hear, as nats-server's `permissions` block takes it; `api` is how the
    server sees JetStream's: in another domain than its own it is `$JS.<domain>.API`."""
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
        UP: [f"{api}.STREAM.{verb}.{DEAD_LETTERS.name}" for verb in ("INFO", "MSG.GET")],  # people read them
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
