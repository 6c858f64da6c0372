"""Real nats-servers on loopback addresses of their own, as `millrace broker` configures them."""

import asyncio
import json
import random
import subprocess
from pathlib import Path
from typing import Any

from millrace import broker
from millrace.broker import binary, greets, provision
from millrace.bus import Bus
from millrace.subjects import JOBS, Role

PORT = 4222
START_S = 20.0


class Cluster:
    def __init__(self, folder: Path, tls: broker.Tls | None = None, nodes: int = 3):
        # 127/8 has room: two test runs on a machine do not meet.
        net = f"127.{random.randrange(10, 250)}.{random.randrange(250)}"
        self.hosts = [f"{net}.{n + 1}" for n in range(nodes)]
        self.folder = folder
        provision(folder, [f"{host}:{PORT}" for host in self.hosts], "jetstream", tls)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, host: str) -> None:
        alone = len(self.hosts) == 1
        home = self.folder / ("nats" if alone else f"nats-{self.hosts.index(host) + 1}")
        with (home / "log").open("ab") as log:
            self._running[host] = subprocess.Popen(
                [binary(), "--config", home / broker.CONFIG], cwd=home, stderr=log
            )

    async def up(self) -> "Cluster":
        for host in self.hosts:
            self.start(host)
        async with asyncio.timeout(START_S):
            for host in self.hosts:
                while not await greets(host, PORT):
                    await asyncio.sleep(0.05)
        return self

    def pid(self, host: str) -> int:
        return self._running[host].pid

    def kill(self, host: str) -> None:
        self._running[host].kill()
        self._running.pop(host).wait()

    def close(self) -> None:
        for host in list(self._running):
            self.kill(host)

    def url(self, role: Role) -> str:
        return (self.folder / role / broker.URL).read_text().strip()

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
            info = json.loads(await bus._ask(f"$JS.API.STREAM.INFO.{JOBS.name}", b"", 1.0))
        except Exception:  # there is no leader yet
            return {}
        finally:
            await bus.close()
        return dict(info)
