"""A service to measure: `millrace up` with engines that note their steps."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench import witness
from bench.cpu import Memory, Reading, memory
from millrace.up import control

ROOT = Path(__file__).parents[1]
START_S = 30.0


class Site:
    def __init__(self, folder: Path):
        self.port = 0
        self.pids: dict[str, int] = {}
        self._folder = folder
        self._up: subprocess.Popen[bytes] | None = None
        self._engines: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def _state(self) -> Path:
        return self._folder / "state"

    async def start(self, witnesses: int, settings: Mapping[str, Any]) -> None:
        """Without witnesses it has an engine of its own, as a user's would."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")}
        env |= {f"MILLRACE_{key.upper()}": str(value) for key, value in settings.items()}
        env["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-m", "millrace", "up", "--plain", "--model", "sim", "--port", "0"]
        command += ["--state-dir", str(self._state), "--engines", str(0 if witnesses else 1)]
        with (self._folder / "out").open("wb") as out:
            self._up = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=self._folder)
        await self._until(lambda rows: bool(rows) and all(r.state == "ready" for r in rows))
        for n in range(witnesses):
            id = f"witness_{n}"
            own = env | {
                "MILLRACE_NATS": (self._state / "nats" / "engine.url").read_text().strip(),
                "MILLRACE_ID": id,
                "MILLRACE_MODEL": "sim",
            }
            command = [sys.executable, "-m", "bench.witness", str(self._folder / id)]
            with (self._folder / f"{id}.log").open("wb") as out:
                self._engines[id] = subprocess.Popen(
                    command, env=own, stdout=out, stderr=out, cwd=self._folder
                )
        await self._until(
            lambda rows: sum(r.role == "engine" and r.state == "ready" for r in rows) >= witnesses
        )
        rows = self._rows()
        self.port = int(self._url.rpartition(":")[2])
        roles = [row.role for row in rows]
        for row in rows:
            name = row.role if roles.count(row.role) == 1 else f"{row.role} {row.id.rpartition('_')[2]}"
            self.pids[name] = row.pid
        self.pids["up"] = self._up.pid
        await asyncio.sleep(0.7)  # the gateway hears of an engine within half a second

    async def _until(self, met: Callable[[list[control.Row]], bool]) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            rows = await asyncio.to_thread(self._rows)
            if self._url and met(rows):
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the service did not start:\n{(self._folder / 'out').read_text()[-2000:]}")

    @property
    def _url(self) -> str:
        """Said once everything is ready."""
        lines = (self._folder / "out").read_text().splitlines()
        return next((line.split()[-1] for line in lines if line.startswith("ready: ")), "")

    def _rows(self) -> list[control.Row]:
        try:
            return control.order(self._state, control.Ps(), lambda _: None).rows
        except control.ControlError:
            return []

    def reading(self, *, client: bool = True) -> Reading:
        return Reading.of(self.pids | ({"client": os.getpid()} if client else {}))

    def memory(self) -> dict[str, Memory]:
        return {name: memory(pid) for name, pid in self.pids.items()}

    async def notes(self) -> list[witness.Note]:
        """Ends the engines; every step of each, in order of time."""
        notes: list[witness.Note] = []
        for id, engine in self._engines.items():
            await _end(engine)
            notes += witness.read(self._folder / id)
        self._engines.clear()
        return sorted(notes, key=lambda note: note.at_ns)

    async def stop(self) -> None:
        for engine in self._engines.values():
            await _end(engine)
        if self._up:
            await _end(self._up)


async def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)


@asynccontextmanager
async def site(witnesses: int = 0, **settings: Any) -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name:
        it = Site(Path(name))
        try:
            await it.start(witnesses, settings)
            yield it
        finally:
            await it.stop()
