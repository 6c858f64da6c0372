"""The `millrace` command as its user runs it: a real process, and a running `up` with what it says."""

import asyncio
import json
import os
import select
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.kit.service import ROOT

FAST = {"MILLRACE_SIM_STEP_MS": "1", "MILLRACE_SIM_ROW_MS": "0", "MILLRACE_SIM_TOKEN_MS": "0"}
LIMIT_S = 90.0
"""How long a test waits for something that never comes, before it fails."""

ROLES = ("nats", "gateway", "tokenizer", "engine", "detokenizer")


async def launch(*args: object, env: Mapping[str, str]) -> Process:
    command = [sys.executable, "-P", "-m", "millrace", *map(str, args)]
    return await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=env, cwd=ROOT
    )


async def call(*args: object, env: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a command to its end: status, output, complaint."""
    process = await launch(*args, env=env)
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Up:
    """A running `millrace up --plain`, and what it said so far."""

    def __init__(self, process: Process, folder: Path, env: Mapping[str, str]):
        self.process = process
        self.folder = folder
        self.env = env
        self.lines: list[str] = []
        self.url = ""

    async def says(self, *parts: str) -> str:
        """The next line that has all of these in it."""
        assert self.process.stdout
        async with asyncio.timeout(LIMIT_S):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line.rstrip())
                if all(part in line for part in parts):
                    return self.lines[-1]
        raise AssertionError(f"it ended without saying {parts}: {self.lines}")

    async def order(self, *args: object) -> tuple[int, str, str]:
        return await call(*args, "--state-dir", self.folder, env=self.env)

    async def ps(self) -> list[dict[str, Any]]:
        status, out, err = await self.order("ps", "--json")
        assert status == 0, err
        rows: list[dict[str, Any]] = json.loads(out)
        return rows

    async def pids(self) -> dict[str, list[int]]:
        rows = await self.ps()
        return {role: [row["pid"] for row in rows if row["role"] == role] for role in ROLES}

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), LIMIT_S)


def watched(pids: Iterable[int]) -> list[int]:
    """Descriptors that tell when these processes have ended, whatever becomes of their numbers."""
    return [os.pidfd_open(pid) for pid in pids]


async def all_gone(pidfds: list[int]) -> bool:
    def wait() -> bool:
        try:
            return all(select.select([fd], [], [], LIMIT_S)[0] for fd in pidfds)
        finally:
            for fd in pidfds:
                os.close(fd)

    return await asyncio.to_thread(wait)
