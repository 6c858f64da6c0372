"""A service of a certain shape, kept for all the trials that can share it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from millrace.bus import Bus
from millrace.jetstream import JetStream
from millrace.subjects import JOBS, Role
from tests.chaos import mounts
from tests.chaos.load import Wish, recorded
from tests.kit.cluster import Cluster, Far
from tests.kit.service import Service
from tests.kit.wire import Wire


@dataclass(frozen=True)
class Shape:
    """What `up` runs, and what runs beside it on wires of ours that can be cut."""

    engines: int = 2
    tokenizers: int = 1
    detokenizers: int = 1
    wired_engines: int = 0
    wired_detokenizers: int = 0
    env: tuple[tuple[str, str], ...] = ()
    small_disk: bool = False
    cluster: bool = False  # three nats-servers, each with the whole job queue, instead of one
    far: Far = ""  # one nats-server more, a leaf node or a joined cluster, and how many engines are there
    far_engines: int = 0

    @property
    def servers(self) -> int:
        """What is joined to a cluster is joined to one that has streams, which takes three."""
        return 3 if self.cluster or self.far == "joined" else 1

    @property
    def counts(self) -> dict[str, int]:
        return {
            "engines": self.engines,
            "tokenizers": self.tokenizers,
            "detokenizers": self.detokenizers,
        }

    @property
    def want(self) -> dict[str, int]:
        return {
            "nats": 0 if self.cluster or self.far else 1,
            "gateway": 1,
            "tokenizer": self.tokenizers,
            "engine": self.engines + self.wired_engines + self.far_engines,
            "detokenizer": self.detokenizers + self.wired_detokenizers,
        }


STEP_MS = 12
"""Slow enough for two shared cores, and for every stream to be in its midst for a second."""


SABOTAGE = Path(__file__).parent / "sabotage"
"""Each folder in it, put on a service's PYTHONPATH, takes one rule out of its processes."""

_recorded: dict[str, list[Wish]] = {}
"""By PYTHONPATH. A model is a pure function, so one recording serves for all services of a run."""


@dataclass
class Site:
    shape: Shape
    service: Service
    missing: str = ""  # why this shape cannot be had here
    wires: dict[int, Wire] = field(default_factory=dict)  # by the pid they lead to
    cluster: Cluster | None = None
    far_engines: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def nats_port(self) -> int:
        return nats_port(self.service.folder)

    async def wishes(self) -> list[Wish]:
        """What clients ask for here, with what they get undisturbed."""
        code = self.service.env["PYTHONPATH"]
        if code not in _recorded:
            env = self.service.env
            exact = not env.get("MILLRACE_DEVICE", "").startswith("cuda")
            _recorded[code] = await recorded(self.service.url, env["MILLRACE_MODEL"], exact=exact)
            await self.settle()
        return _recorded[code]

    async def settle(self) -> str:
        """Wait until everything is there again; what is still held of requests that have all ended."""
        await self.service.settled(self.shape.want)
        left = ""
        for _ in range(100):
            rows = await self.service.ps()
            held = [f"{row.id} {row.load}" for row in rows if row.role in ("gateway", "engine") and row.load]
            left = f"still held: {', '.join(held)}" if held else ""
            if not left and not self.shape.small_disk:  # what a full disk left in the queue ends with its age
                left = await self._stored()
            if not left:
                break
            await asyncio.sleep(0.05)
        return left

    def start(self, role: str, number: int, url: str) -> subprocess.Popen[bytes]:
        # Nothing looks at the number but tests/chaos/sabotage/kinds.
        return self.service.beside(role, url, CHAOS_KIND=str(number))

    def start_far_engine(self, number: int = 0) -> None:
        assert self.cluster
        self.far_engines.append(self.start("engine", number, self.cluster.url(Role.ENGINE, far=True)))

    async def end_far_engines(self) -> None:
        for process in self.far_engines:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def _stored(self) -> str:
        """Jobs that nobody will ask for: each takes a place in the queue for ever."""
        file = self.service.folder / "nats" / f"{Role.GATEWAY}.url"
        url = self.cluster.url(Role.GATEWAY) if self.cluster else file.read_text().strip()
        bus = await Bus.connect(url, Role.GATEWAY, "chaos")
        try:
            info = await JetStream(bus)._api(f"STREAM.INFO.{JOBS.name}", {})
        finally:
            await bus.close()
        count = info.get("state", {}).get("messages", -1)
        return f"the queue still has {count} jobs" if count else ""


def nats_port(folder: Path) -> int:
    return urlsplit((folder / "nats" / "engine.url").read_text().strip()).port or 0


@contextlib.asynccontextmanager
async def opened(shape: Shape, more: Mapping[str, str]) -> AsyncIterator[Site]:
    env = {"MILLRACE_SIM_STEP_MS": str(STEP_MS), **dict(shape.env), **more}
    async with contextlib.AsyncExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="millrace-chaos-")))
        missing = held.enter_context(mounts.small(folder)) if shape.small_disk else ""
        cluster = None
        if shape.cluster or shape.far:
            cluster = Cluster(folder / "cluster", nodes=shape.servers, far=shape.far)
            held.push_async_callback(cluster.down)
            await cluster.up()
            env |= {"MILLRACE_BROKER": str(cluster.folder), "MILLRACE_REPLICAS": str(len(cluster.hosts))}
        service = await Service.start(env=env, folder=folder, **shape.counts)
        held.push_async_callback(service.stop)
        site = Site(shape, service, missing, cluster=cluster)
        for role, count in (("engine", shape.wired_engines), ("detokenizer", shape.wired_detokenizers)):
            for number in range(count):
                await _start_wired(site, role, number, held)
        for number in range(shape.far_engines):
            site.start_far_engine(number)
        held.push_async_callback(site.end_far_engines)
        await service.settled(shape.want)
        await service.answers()
        yield site


async def _start_wired(site: Site, role: str, number: int, held: contextlib.AsyncExitStack) -> None:
    wire = Wire(site.nats_port)
    await wire.open()
    held.push_async_callback(wire.close)
    url = (site.service.folder / "nats" / f"{role}.url").read_text().strip()
    process = site.start(role, number, url.replace(f":{site.nats_port}", f":{wire.port}"))
    site.wires[process.pid] = wire

    async def stop() -> None:
        wire.heal()
        os.kill(process.pid, signal.SIGCONT)
        process.kill()
        await asyncio.to_thread(process.wait)

    held.push_async_callback(stop)
