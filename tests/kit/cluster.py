"""Real nats-servers on loopback addresses of their own, as `millrace broker` configures them."""

import asyncio
import json
import random
import subprocess
from pathlib import Path
from typing import Any, Literal

from millrace.bus import Bus
from millrace.nats_conf import CONFIG, Tls
from millrace.provision import GATEWAYS, LEAVES, URL, provision
from millrace.subjects import JOBS, Role
from millrace.up.broker import binary, greets
from tests.kit.wire import Wire

PORT = 4222
BEHIND = 10_000
"""What a server listens on further up, where a wire of ours has its port."""

START_S = 60.0
FAR = "far"
Far = Literal["", "leaf", "joined"]


class Cluster:
    """A cluster, and perhaps one server more that is reached over wires which can be cut: a leaf node, or a
    cluster of its own."""

    def __init__(
        self, folder: Path, tls: Tls | None = None, nodes: int = 3, far: Far = "", delay_s: float = 0.0
    ):
        # 127/8 has room: two test runs on a machine do not meet.
        net = f"127.{random.randrange(10, 250)}.{random.randrange(250)}"
        self.hosts = [f"{net}.{n + 1}" for n in range(nodes)]
        self.far = f"{net}.{nodes + 1}" if far else ""
        self.folder = folder
        address = f"{self.far}:{PORT}"
        provision(
            folder,
            [f"{host}:{PORT}" for host in self.hosts],
            "jetstream",
            tls,
            joined={FAR: [address]} if far == "joined" else {},
            leaves={FAR: address} if far == "leaf" else {},
        )
        alone = nodes == 1
        self._homes = {
            host: folder / ("nats" if alone else f"nats-{n + 1}") for n, host in enumerate(self.hosts)
        }
        ports = {"": [], "leaf": [(host, LEAVES) for host in self.hosts]}.get(
            far, [(host, GATEWAYS) for host in (*self.hosts, self.far)]
        )
        if far:
            self._homes[self.far] = folder / FAR / "nats"
        self._wires = {place: self._behind(*place, delay_s) for place in ports}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def _behind(self, host: str, port: int, delay_s: float) -> Wire:
        config = self._homes[host] / CONFIG
        text = config.read_text()
        own = f'listen: "{host}:{port}"'
        assert text.count(own) == 1
        config.write_text(text.replace(own, f'listen: "{host}:{port + BEHIND}"'))
        return Wire(port + BEHIND, host, delay_s)

    def start(self, host: str) -> None:
        home = self._homes[host]
        with (home / "log").open("ab") as log:
            self._running[host] = subprocess.Popen(
                [binary(), "--config", home / CONFIG], cwd=home, stderr=log
            )

    async def up(self) -> "Cluster":
        for (_, port), wire in self._wires.items():
            await wire.open(port)
        for host in self._homes:
            self.start(host)
        async with asyncio.timeout(START_S):
            for host in self._homes:
                while not await greets(host, PORT):
                    await asyncio.sleep(0.05)
        return self

    def cut(self) -> None:
        """What is far is cut off, and nobody is told."""
        for wire in self._wires.values():
            wire.cut()

    def heal(self) -> None:
        for wire in self._wires.values():
            wire.heal()

    def pid(self, host: str) -> int:
        return self._running[host].pid

    def kill(self, host: str) -> None:
        self._running[host].kill()
        self._running.pop(host).wait()

    def close(self) -> None:
        for host in list(self._running):
            self.kill(host)

    async def down(self) -> None:
        self.close()
        for wire in self._wires.values():
            await wire.close()

    def url(self, role: Role, *, far: bool = False) -> str:
        folder = self.folder / FAR if far else self.folder
        return (folder / role / URL).read_text().strip()

    async def leader(self) -> str:
        """The host that leads the job queue now; waits until there is one."""
        async with asyncio.timeout(START_S):
            while not (name := (await self._jobs()).get("cluster", {}).get("leader")):
                await asyncio.sleep(0.1)
        return str(name)

    async def whole(self) -> None:
        """Every server has the job queue as it is now."""
        async with asyncio.timeout(START_S * 2):
            while True:
                peers = (await self._jobs()).get("cluster", {}).get("replicas", [])
                if len(peers) == len(self.hosts) - 1 and all(peer["current"] for peer in peers):
                    return
                await asyncio.sleep(0.1)

    async def _jobs(self) -> dict[str, Any]:
        bus = await Bus.connect(self.url(Role.GATEWAY), Role.GATEWAY, "test")
        try:
            info = json.loads(await bus.ask(f"$JS.API.STREAM.INFO.{JOBS.name}", b"", 1.0))
        except Exception:  # there is no leader yet
            return {}
        finally:
            await bus.close()
        return dict(info)
