"""What an engine in another cluster costs, which NATS gateways join to the one that has the streams.

Three services, alike but for where their one engine is: here; in a joined cluster on this machine; there,
with a delay on the wires between the clusters. Each is asked the same, one request at a time. What crosses is
what the far server has counted at its gateway connections, less what crosses while nobody asks.
"""

import asyncio
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx

from bench import table
from bench.load import ask, completion
from millrace.provision import MONITOR
from millrace.subjects import Role
from tests.kit.cluster import Cluster
from tests.kit.service import Service

DELAY_S = 0.02
STEP_MS = 20.0
TOKENS = 100
PROMPT = 1000
AFTER_S = 0.2
"""For what is said after the last token."""


@dataclass(frozen=True)
class Place:
    name: str
    far: bool
    delay_s: float = 0.0


PLACES = (Place("here", False), Place("joined", True), Place(f"joined, {DELAY_S * 1e3:g} ms", True, DELAY_S))


@dataclass
class Crossed:
    """Between the clusters, in both directions."""

    messages: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def add(self, since: "Crossed", until: "Crossed") -> None:
        self.messages += until.messages - since.messages
        self.bytes += until.bytes - since.bytes
        self.seconds += until.seconds - since.seconds


@dataclass
class Measured:
    service: Service
    nats: Cluster
    firsts: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    asked: Crossed = field(default_factory=Crossed)
    idle: Crossed = field(default_factory=Crossed)
    last: Crossed | None = None

    def each(self, what: str) -> float:
        """For a request, less what crosses anyhow."""
        idle = getattr(self.idle, what) / self.idle.seconds
        return float(getattr(self.asked, what) - idle * self.asked.seconds) / len(self.firsts)


async def measure(seconds: float) -> None:
    async with AsyncExitStack() as held:
        measured = [await _started(place, held) for place in PLACES]
        began = time.monotonic()
        # What crosses while nobody asks is what crosses from one request to the next.
        while time.monotonic() - began < seconds or len(measured[0].firsts) < 2:
            for each in measured:
                await _ask(each)
    here = measured[0]
    table.show(
        f"Far: one request at a time, a prompt of {PROMPT} tokens, {TOKENS} tokens in {STEP_MS:g} ms steps",
        ["engine", "first token ms", "more", "a token ms", "of here", "messages", "KB", "idle msg/s", "KB/s"],
        [
            [
                place.name,
                median(each.firsts) * 1e3,
                (median(each.firsts) - median(here.firsts)) * 1e3,
                median(each.tokens) * 1e3,
                median(each.tokens) / median(here.tokens),
                each.each("messages"),
                each.each("bytes") / 1e3,
                each.idle.messages / each.idle.seconds,
                each.idle.bytes / each.idle.seconds / 1e3,
            ]
            for place, each in zip(PLACES, measured, strict=True)
        ],
        f"Medians of {len(here.firsts)} requests. Messages and KB crossed between the clusters for a "
        "request, in both directions, and each second while nobody asked. The delay is one way.",
    )


async def _started(place: Place, held: AsyncExitStack) -> Measured:
    folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="millrace-bench-")))
    nats = Cluster(folder / "nats", nodes=3, far="joined", delay_s=place.delay_s)
    held.push_async_callback(nats.down)
    await nats.up()
    env = {
        "MILLRACE_BROKER": str(nats.folder),
        "MILLRACE_REPLICAS": "3",
        "MILLRACE_SIM_STEP_MS": str(STEP_MS),
        "MILLRACE_SIM_ROW_MS": "0",
        "MILLRACE_SIM_TOKEN_MS": "0",
        "MILLRACE_SIM_EOS": "0",
        "MILLRACE_PREFIX_CACHE_MB": "0",
        "MILLRACE_CHUNK": str(PROMPT),
    }
    service = await Service.start(env=env, folder=folder, engines=0 if place.far else 1)
    held.push_async_callback(service.stop)
    if place.far:
        engine = service.beside(Role.ENGINE, nats.url(Role.ENGINE, far=True))
        held.push_async_callback(_end, engine)
    await service.settled({"engine": 1})
    await service.answers(60)
    return Measured(service, nats)


async def _ask(each: Measured) -> None:
    before = await _crossed(each.nats)
    if each.last:
        each.idle.add(each.last, before)
    seed = len(each.firsts)
    prompt = [5 + (seed * 7 + n) % 1000 for n in range(PROMPT)]
    heard = await ask(int(each.service.url.rpartition(":")[2]), completion(TOKENS, seed=seed, prompt=prompt))
    await heard.over
    if not heard.whole or heard.tokens != TOKENS:
        raise RuntimeError(f"a request failed: status {heard.status}")
    await asyncio.sleep(AFTER_S)
    each.firsts.append(heard.first_token_s)
    each.tokens.append((heard.texts[-1][0] - heard.texts[0][0]) / 1e9 / (len(heard.texts) - 1))
    each.last = await _crossed(each.nats)
    each.asked.add(before, each.last)


async def _crossed(nats: Cluster) -> Crossed:
    """Both directions, of everything that crosses between the clusters since the start."""
    async with httpx.AsyncClient() as http:
        told = (await http.get(f"http://{nats.far}:{MONITOR}/gatewayz")).json()
    links = [link["connection"] for link in told["outbound_gateways"].values()]
    out = sum(link["out_msgs"] for link in links), sum(link["out_bytes"] for link in links)
    links = [link["connection"] for some in told["inbound_gateways"].values() for link in some]
    return Crossed(
        out[0] + sum(link["in_msgs"] for link in links),
        out[1] + sum(link["in_bytes"] for link in links),
        time.monotonic(),
    )


async def _end(engine: subprocess.Popen[bytes]) -> None:
    engine.kill()
    await asyncio.to_thread(engine.wait)
