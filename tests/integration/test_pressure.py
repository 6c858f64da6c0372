"""A service whose machine runs short of memory: what runs ends well, and what comes waits for more of it."""

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from millrace.subjects import PULL_EXPIRES_S
from millrace.up.control import Row
from tests.kit.client import ask
from tests.kit.service import Service


class Machine:
    """Where the engine looks for the memory of its machine."""

    def __init__(self, root: Path):
        self.root = root
        (root / "proc").mkdir(parents=True)
        self.available(50)

    def available(self, share: int) -> None:
        new = self.root / "proc" / "new"
        new.write_text(f"MemTotal: 1000000 kB\nMemAvailable: {share}0000 kB\n")
        new.replace(self.root / "proc" / "meminfo")


async def engine(service: Service, until: Callable[[Row], bool]) -> Row:
    for _ in range(1200):
        (row,) = await service.rows("engine")
        if until(row):
            return row
        await asyncio.sleep(0.05)
    pytest.fail(f"the engine is still {row}")


async def taken_from(service: Service, engine: int) -> None:
    """Pause this process until its owner has taken from it what it ran."""
    log = next((service.folder / "log").glob("gateway*"))
    os.kill(engine, signal.SIGSTOP)
    try:
        for _ in range(1200):
            if "was taken from" in log.read_text():
                return
            await asyncio.sleep(0.05)
        pytest.fail("its owner took nothing from it")
    finally:
        os.kill(engine, signal.SIGCONT)


async def test_it_takes_nothing_while_memory_is_short(tmp_path: Path) -> None:
    """`millrace ps` says so; the running stream ends, though its only engine was paused and had to take it
    back, and the new one waits and is answered in the end."""
    machine = Machine(tmp_path / "machine")
    env = {"MILLRACE_SYSROOT": str(machine.root), "MILLRACE_SIM_STEP_MS": "10", "MILLRACE_SIM_EOS": "0"}
    service = await Service.start(env=env, engines=1)
    try:
        body = {
            "model": "sim",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "return_token_ids": True,
        }
        running = asyncio.create_task(ask(service.url, {**body, "max_tokens": 600}))
        await engine(service, lambda row: row.load == 1)
        machine.available(3)
        row = await engine(service, lambda row: row.pressure == "short")
        assert ("ready", "short", 1) == (row.state, row.shown, row.load)
        metrics = await asyncio.to_thread(lambda: urlopen(f"{service.url}/metrics").read().decode())
        assert re.search(r"^millrace_pressure{.*} 2(\.0)?$", metrics, re.MULTILINE)
        await asyncio.sleep(PULL_EXPIRES_S + 0.1)  # what it had asked for before may come until then
        waiting = asyncio.create_task(ask(service.url, {**body, "max_tokens": 5}))
        await taken_from(service, row.pid)
        first = await running
        assert (600, None) == (len(first.token_ids), first.failure or None)
        row = await engine(service, lambda row: row.load == 0)
        await asyncio.sleep(0.5)
        assert not waiting.done()

        machine.available(50)
        second = await waiting
        assert (5, None) == (len(second.token_ids), second.failure or None)
        assert "" == (await engine(service, lambda row: not row.pressure)).pressure
        log = next((service.folder / "log").glob("engine*")).read_text()
        assert "memory is short" in log and "suffice again" in log
    finally:
        await service.stop()
