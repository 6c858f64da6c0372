"""A real `millrace up` in a folder of its own, with the pids of everything it runs."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from millrace.up import control
from millrace.up.control import ControlError, Row
from tests.kit.client import ask

ROOT = Path(__file__).parents[2]
START_S = 90.0
STOP_S = 30.0


def free_port() -> int:
    """Below those that the system gives to whoever asks for any, so that it stays free."""
    for port in random.sample(range(10_000, 32_000), 100):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def _unsaid(text: str) -> None:
    pass


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without any Millrace setting, so that a run depends on what it says itself."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")}
    path = os.pathsep.join(filter(None, (extra.get("PYTHONPATH"), str(ROOT))))
    return {**own, **extra, "PYTHONPATH": path}


class Service:
    def __init__(self, env: dict[str, str], folder: Path, up: subprocess.Popen[bytes]):
        self.env = env
        self.folder = folder
        self.url = ""
        self._up = up
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    async def start(
        cls, *, env: Mapping[str, str] | None = None, folder: Path | None = None, **counts: int
    ) -> "Service":
        """`counts` as `up` takes them: engines=2, ..."""
        temporary = None if folder else tempfile.TemporaryDirectory(prefix="millrace-chaos-")
        folder = folder or Path(temporary.name if temporary else "")
        command = [sys.executable, "-P", "-m", "millrace", "up", "--plain"]
        command += ["--port", "0", "--state-dir", str(folder)]
        for role, count in counts.items():
            command += [f"--{role}", str(count)]
        full = environment({"MILLRACE_MODEL": "sim", **(env or {})})
        with (folder / "up.out").open("ab") as out:
            up = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=full, cwd=folder
            )
        service = cls(full, folder, up)
        service._temporary = temporary
        try:
            await service._until_up(sum(counts.values()), whole=0 not in counts.values())
        except BaseException:
            await service.stop()
            raise
        return service

    async def _until_up(self, least: int, *, whole: bool) -> None:
        """Until a gateway has heard of the others, too, if `up` runs all that it waits for."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self._up.poll() is not None:
                break
            rows = await self.ps()
            ready = len(rows) > least and all(row.state == "ready" for row in rows)
            if ready and (not whole or await self._answers_readily()):
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the service did not start:\n{(self.folder / 'up.out').read_text()[-2000:]}")

    async def _answers_readily(self) -> bool:
        async with httpx.AsyncClient() as http:
            return (await http.get(f"{self.url}/readyz")).is_success

    def beside(self, role: str, url: str, **env: str) -> subprocess.Popen[bytes]:
        """A process that `up` knows nothing of, with the service's settings and this NATS."""
        with (self.folder / "log" / f"beside_{role}.log").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "millrace", role],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.env | {"MILLRACE_NATS": url} | env,
                cwd=self.folder,
            )

    async def answers(self, limit: float = 60.0) -> None:
        """Wait until a short request is answered."""
        body = {
            "model": self.env["MILLRACE_MODEL"],
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 1,
            "stream": True,
        }
        end = time.monotonic() + limit
        while failure := (await ask(self.url, body)).failure:
            if time.monotonic() > end:
                raise RuntimeError(f"the service does not answer: {failure}")
            await asyncio.sleep(0.1)

    async def ps(self) -> list[Row]:
        """What `millrace ps --json` prints, without a new process for each look."""
        try:
            done = await asyncio.to_thread(control.order, self.folder, control.Ps(), _unsaid)
        except ControlError:
            return []
        self.url = done.url
        return done.rows

    async def rows(self, role: str) -> list[Row]:
        return [row for row in await self.ps() if row.role == role and row.pid]

    async def strike(self, role: str = "engine") -> int:
        """kill -9 of who has most to do; how much that was. 0, and nobody is killed, if they have nothing for
        longer than it takes to tell of it: what was to be struck is over."""
        for _ in range(20):
            busy = [row for row in await self.rows(role) if row.load]
            if busy:
                busiest = max(busy, key=lambda row: row.load)
                os.kill(busiest.pid, signal.SIGKILL)
                return busiest.load
            await asyncio.sleep(0.05)
        return 0

    async def restart(self, role: str = "") -> None:
        """As `millrace restart` does it."""
        await asyncio.to_thread(control.order, self.folder, control.Restart(role), _unsaid)

    async def settled(self, want: Mapping[str, int], limit: float = 60.0) -> None:
        """Wait until every role has its number of processes again, all of them ready."""
        end = time.monotonic() + limit
        rows: list[Row] = []
        while time.monotonic() < end:
            rows = await self.ps()
            have = [row for row in rows if row.state == "ready" and row.pid]
            if all(sum(row.role == role for row in have) >= count for role, count in want.items()):
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"the service did not settle in {limit:g} s: {rows}")

    async def stop(self) -> None:
        if self._up.poll() is None:
            self._up.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._up.wait, STOP_S)
            except subprocess.TimeoutExpired:
                self._up.kill()  # its processes die with it
                await asyncio.to_thread(self._up.wait)
        if self._temporary:
            self._temporary.cleanup()
