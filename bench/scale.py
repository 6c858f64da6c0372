"""`python -m bench.scale`: what so many requests in flight come to, by the messages' own encoders.

Nothing is started: bytes are those of real messages between processes with names as long as theirs, and of
the lines that NATS puts around them; how many messages there are follows from who sends what to whom. What
docs/bench.md has measured of a token is taken from there.
"""

import secrets
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from bench import table
from millrace import messages as m
from millrace.metrics import SECONDS, TOKENS
from millrace.run import HERE_S
from millrace.subjects import DETOKENIZER, ENGINE, GATEWAY, JOB, JOBS, PRESENCE, TOKENIZER, Role
from services.engine.jobs.roster import HOLDING_S
from services.gateway.owner.ledger import RENEW_S

IN_FLIGHT = (10, 1_000, 10_000, 100_000, 1_000_000)
PROMPT, ANSWER = 1000, 300  # tokens
RATE = 20.0  # tokens a second of each stream
SLOTS = 64  # of an engine
STREAMS = {Role.GATEWAY: 1000, Role.DETOKENIZER: 4000}  # that one process takes, with half a core to spare
PROMPTS = 200.0  # requests a second that one tokenizer takes

US_PER_TOKEN = {"gateway": 29.2, "detokenizer": 5.79, "nats": 9.31}
"""Measured: docs/bench.md, The crowd, where a gateway and a detokenizer serve four engines."""


@dataclass(frozen=True)
class Wire:
    """A message as NATS carries it: a PUB line into the server, and a MSG line out of it."""

    name: str
    subject: str
    payload: int
    reply: int = 0  # bytes of the subject that the answer goes to

    @property
    def into(self) -> int:
        return len(f"PUB {self.subject} {'r' * self.reply} {self.payload}\r\n\r\n") + self.payload

    @property
    def out(self) -> int:
        return len(f"MSG {self.subject} 12 {'r' * self.reply} {self.payload}\r\n\r\n") + self.payload


def _id(role: Role) -> str:
    return f"{role}_{secrets.token_hex(4)}"


GATEWAY_ID, ENGINE_ID, DETOKENIZER_ID = _id(Role.GATEWAY), _id(Role.ENGINE), _id(Role.DETOKENIZER)
LEASE = f"$JS.ACK.{JOBS.name}.demo.1.{10**6}.{10**6}.{179 * 10**16}.0"
INBOX = 45


def request() -> str:
    return f"{GATEWAY_ID}-{secrets.token_hex(16)}"


def wired(name: str, subject: str, message: m.Message, *, asks: bool = False) -> Wire:
    return Wire(name, subject, len(m.encode(message)), INBOX if asks else 0)


def frame(runs: int) -> Wire:
    said = [m.Run(request(), 1, ANSWER // 2, [12345]) for _ in range(runs)]
    return wired("Frame", DETOKENIZER.to(DETOKENIZER_ID), m.Frame(ENGINE_ID, said))


def delta(runs: int) -> Wire:
    said = [m.Said(request(), 1, ANSWER // 2, [12345], [" wheel"]) for _ in range(runs)]
    return wired("Delta", GATEWAY.to(GATEWAY_ID), m.Delta(ENGINE_ID, DETOKENIZER_ID, said))


def here(role: Role) -> Wire:
    counts = {f"count_of_{n}": 10**5 for n in range(24 if role is Role.GATEWAY else 8)}
    spreads = {f"s{n}": m.Spread(1e3, [10**4] * (len(SECONDS) + 1)) for n in range(7)}
    spreads |= {f"t{n}": m.Spread(1e6, [10**4] * (len(TOKENS) + 1)) for n in range(2)}
    tallies = [m.Tallied("demo", {}, spreads)] if role is Role.GATEWAY else []
    told = m.Here(
        *(role, _id(role), 4000, "ready", 40, SLOTS, "demo", 4096, counts),
        gauges={"cpu_s": 123.45, "rss": 5e7, "cache_used": 0.5, "pressure": 0.0},
        tallies=tallies,
    )
    return wired(f"Here of a {role}", PRESENCE.to(role), told)


def once() -> list[Wire]:
    """What one request says before its first token and after its last."""
    name = request()
    body = b'[{"role":"user","content":"%b"}]' % (b"x" * (PROMPT * 4))
    sampling = m.Sampling(seed=1 << 60)
    hops = [m.Hop(hop, 1.8e9, 1.8e9, 1, {"tokens": 300}) for hop in ("claim", "prefill", "decode")]
    gateway = GATEWAY.to(GATEWAY_ID)
    inbox = "i" * INBOX
    job = m.Job(name, 1, b"\0" * 4 * PROMPT, sampling, ANSWER)
    return [
        wired("Prompt", TOKENIZER.to("demo"), m.Prompt(name, 1, "demo", m.Chat(body), sampling), asks=True),
        wired("Job, stored", JOB.to("demo", "normal", "all"), job, asks=True),
        Wire("its PubAck", inbox, len('{"stream":"JOBS","seq":1000000}')),
        wired("Admitted", inbox, m.Admitted(name, 10**6, PROMPT, ANSWER, hops=hops[:2])),
        Wire("pull", "$JS.API.CONSUMER.MSG.NEXT.JOBS.demo", 60, INBOX),
        Wire("Job, delivered", inbox, len(m.encode(job)), len(LEASE)),
        wired("Claim", gateway, m.Claim(name, ENGINE_ID, LEASE, 40, "a" * 16), asks=True),
        wired("Granted", inbox, m.Granted(name, 1, [], DETOKENIZER_ID, 120_000)),
        wired("Opened", DETOKENIZER.to(DETOKENIZER_ID), m.Opened(name, 1, ENGINE_ID, [])),
        wired("Hops of the engine", gateway, m.Hops(Role.ENGINE, ENGINE_ID, name, hops)),
        wired("Hops of the detokenizer", gateway, m.Hops(Role.DETOKENIZER, DETOKENIZER_ID, name, hops[:1])),
        Wire("+ACK", LEASE, 4),
        wired("Release to the engine", ENGINE.to(ENGINE_ID), m.Release([m.Ref(name, 1)])),
        wired("Release to the detokenizer", DETOKENIZER.to(DETOKENIZER_ID), m.Release([m.Ref(name, 1)])),
    ]


def spread(things: float, places: int) -> float:
    """Over how many of the places so many things are spread, if each goes to any."""
    return places * (1.0 - float((1.0 - 1.0 / places) ** things))


@dataclass(frozen=True)
class Scale:
    """All processes with so many requests in flight, each of them at its pace."""

    requests: int

    @property
    def processes(self) -> dict[Role, int]:
        return {
            Role.GATEWAY: ceil(self.requests / STREAMS[Role.GATEWAY]),
            Role.TOKENIZER: ceil(self.arrivals / PROMPTS),
            Role.ENGINE: ceil(self.requests / SLOTS),
            Role.DETOKENIZER: ceil(self.requests / STREAMS[Role.DETOKENIZER]),
        }

    @property
    def arrivals(self) -> float:
        return self.requests / (ANSWER / RATE)

    @property
    def tokens(self) -> float:
        return self.requests * RATE

    @property
    def batch(self) -> float:
        return self.requests / self.processes[Role.ENGINE]

    @property
    def steps(self) -> float:
        return self.processes[Role.ENGINE] * RATE

    @property
    def frames(self) -> float:
        return self.steps * spread(self.batch, self.processes[Role.DETOKENIZER])

    @property
    def deltas(self) -> float:
        return self.steps * spread(
            self.batch, self.processes[Role.DETOKENIZER] * self.processes[Role.GATEWAY]
        )

    @property
    def token_bytes(self) -> float:
        """In and out of NATS, of one token: its part of a frame and of a delta."""
        runs, said = self.tokens / self.frames, self.tokens / self.deltas
        return _each(frame, runs) + _each(delta, said)

    @property
    def renewals(self) -> float:
        return self.requests / RENEW_S

    @property
    def holdings(self) -> float:
        """Each engine asks, and is answered by, every gateway that has a request there."""
        return 2 * self.processes[Role.ENGINE] * min(self.processes[Role.GATEWAY], SLOTS) / HOLDING_S

    @property
    def heard(self) -> float:
        """Deliveries of presence a second: everybody's to every gateway, and the gateways' to everybody."""
        count, gateways = sum(self.processes.values()), self.processes[Role.GATEWAY]
        return (count * gateways + gateways * count) / HERE_S

    @property
    def heard_bytes(self) -> float:
        others = sum(here(role).out * count for role, count in self.processes.items())
        gateways = self.processes[Role.GATEWAY]
        return (others * gateways + here(Role.GATEWAY).out * gateways * sum(self.processes.values())) / HERE_S

    @property
    def stored(self) -> int:
        """Bytes of the job queue, all requests in flight being in it."""
        return self.requests * once()[1].payload


def _each(made: Callable[[int], Wire], runs: float) -> float:
    wire = made(max(1, round(runs)))
    return float(wire.into + wire.out) / max(1, round(runs))


def _token(runs: int) -> list[table.Cell]:
    parts = [round(_each(made, runs)) for made in (frame, delta)]
    return [runs, *parts, sum(parts)]


def count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def main() -> int:
    wires = once()
    rows: list[list[table.Cell]] = [[wire.name, wire.payload, wire.into, wire.out] for wire in wires]
    sums = (
        sum(wire.payload for wire in wires),
        sum(wire.into for wire in wires),
        sum(wire.out for wire in wires),
    )
    table.show(
        f"Scale: what one request says once (prompt of {PROMPT} tokens)",
        ["", "payload, bytes", "into NATS", "out of NATS"],
        [*rows, ["all", *sums]],
        "Computed with the messages' own encoders. Answers of JetStream and the pull are as it writes them.",
    )
    table.show(
        "Scale: bytes of a token, by how many of a step travel together",
        ["together", "Frame, into and out", "Delta, into and out", "a token"],
        [_token(runs) for runs in (1, 8, 64)],
    )
    scales = [Scale(requests) for requests in IN_FLIGHT]
    table.show(
        f"Scale: requests in flight, each at {RATE:g} tokens/s, answers of {ANSWER} tokens, {SLOTS} slots",
        ["", *(count(scale.requests) for scale in scales)],
        list(_rows(scales)),
        "Computed. Cores: by the microseconds a token that docs/bench.md has measured with one gateway, "
        "whose tokens travel many together; where they travel alone it is more.",
    )
    return 0


def _rows(scales: list[Scale]) -> Iterable[list[table.Cell]]:
    for role in (Role.GATEWAY, Role.TOKENIZER, Role.ENGINE, Role.DETOKENIZER):
        yield [f"{role}s", *(count(scale.processes[role]) for scale in scales)]
    yield ["connections to NATS", *(count(sum(scale.processes.values())) for scale in scales)]
    yield ["subscriptions, about 4 a process", *(count(4 * sum(s.processes.values())) for s in scales)]
    yield ["requests/s", *(count(scale.arrivals) for scale in scales)]
    yield ["tokens/s", *(count(scale.tokens) for scale in scales)]
    yield ["frames/s", *(count(scale.frames) for scale in scales)]
    yield ["deltas/s", *(count(scale.deltas) for scale in scales)]
    yield ["messages a token", *(f"{(s.frames + s.deltas) / s.tokens:.2f}" for s in scales)]
    yield ["bytes a token, into and out", *(count(scale.token_bytes) for scale in scales)]
    yield ["bytes/s of tokens", *(count(scale.token_bytes * scale.tokens) for scale in scales)]
    yield ["messages/s of requests' ways", *(count(len(once()) * s.arrivals) for s in scales)]
    yield [f"lease renewals/s, one each {RENEW_S:g} s", *(count(scale.renewals) for scale in scales)]
    yield ["asked and told what is over/s", *(count(scale.holdings) for scale in scales)]
    yield ["presence delivered/s", *(count(scale.heard) for scale in scales)]
    yield ["bytes/s of presence", *(count(scale.heard_bytes) for scale in scales)]
    yield ["bytes in the job queue", *(count(scale.stored) for scale in scales)]
    yield [f"of its {JOBS.max_bytes >> 20} MiB", *(f"{s.stored / JOBS.max_bytes:.2g}" for s in scales)]
    for part, cost in US_PER_TOKEN.items():
        yield [f"cores for tokens: {part}", *(count(scale.tokens * cost / 1e6) for scale in scales)]


if __name__ == "__main__":
    sys.exit(main())
