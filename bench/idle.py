"""What the service costs while nothing happens, and how soon it is there."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench import table
from bench.load import ask, completion
from bench.site import ROOT, site

STARTS = 3


async def measure(seconds: float) -> None:
    async with site() as service:
        await asyncio.sleep(1.0)
        before = service.reading(client=False)
        await asyncio.sleep(seconds)
        after = service.reading(client=False)
        resident = service.memory()
    elapsed = after.at_ns - before.at_ns
    rows: list[list[table.Cell]] = [
        [name, f"{ns / elapsed:.2%}", table.mib(resident[name].now)]
        for name, ns in after.since(before).items()
    ]
    total = sum(after.since(before).values())
    rows.append(["sum", f"{total / elapsed:.2%}", sum(table.mib(m.now) for m in resident.values())])
    table.show("Idle: one process of each role", ["", "of one core", "resident MiB"], rows)
    took = [await _cold() for _ in range(STARTS)]
    table.show(
        "Cold start, seconds from `millrace up` to a client's first token",
        ["median", "fastest", "slowest"],
        [[f"{median(took):.2f}", f"{min(took):.2f}", f"{max(took):.2f}"]],
        f"{STARTS} starts; the files were in the page cache.",
    )


async def _cold() -> float:
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name:
        port = _free_port()
        command = [
            sys.executable,
            "-m",
            "millrace",
            "up",
            "--plain",
            "--model",
            "sim",
            "--port",
            str(port),
        ]
        command += ["--state-dir", str(Path(name) / "state")]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")} | {
            "PYTHONPATH": str(ROOT)
        }
        began = time.monotonic()
        up = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, cwd=name)
        try:
            while time.monotonic() - began < 30:
                try:
                    heard = await ask(port, completion(1))
                except OSError:
                    await asyncio.sleep(0.005)
                    continue
                await heard.over
                if heard.status == 200 and heard.whole:
                    return heard.events[0].at_ns / 1e9 - began
                await asyncio.sleep(0.005)
        finally:
            up.terminate()
            await asyncio.to_thread(up.wait, 30)
    raise RuntimeError("no token within 30 s")


def _free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
