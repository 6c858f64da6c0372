"""A real nats-server on a free port, which a test may kill and start again."""

import asyncio
import subprocess
from pathlib import Path

from millrace.bus import Bus
from millrace.subjects import Role
from millrace.up.broker import Broker


class Server:
    def __init__(self, folder: Path):
        self.broker = Broker.prepare(folder)
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> "Server":
        with self.broker.log.open("ab") as log:
            self._process = subprocess.Popen(self.broker.command(), stderr=log)
        await asyncio.wait_for(self.broker.ready(), 60)
        return self

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self.broker.close()

    async def join(self, role: Role, name: str = "") -> Bus:
        return await Bus.connect(self.broker.url(role), role, name or f"{role}_test")
