"""What a process writes is kept, and does not fill the disk; and when the clock wakes it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from millrace.up.child import LOG_LIMIT, Child

WRITE = """
import os, sys, time
many, go = int(sys.argv[1]), sys.argv[2]
print("\\n".join(f"INFO {i:099}" for i in range(many)))
print("WARNING before", flush=True)
while not os.path.exists(go):
    time.sleep(0.01)
print("WARNING after", flush=True)
time.sleep(600)
"""

SLACK = "import ctypes; print(ctypes.CDLL(None).prctl(30), flush=True)"  # PR_GET_TIMERSLACK


async def over(child: Child) -> None:
    while child.alive:  # nobody else hears SIGCHLD
        child.reap()
        await asyncio.sleep(0.01)
    await child.wait()


async def warned(child: Child) -> list[str]:
    async with asyncio.timeout(60):
        while not (lines := child.warnings()):
            await asyncio.sleep(0.01)
    return lines


async def test_a_long_log_is_set_aside(tmp_path: Path) -> None:
    """While its process lives, which may be for months; no line is missing, and all are heard."""
    many, go, log = LOG_LIMIT // 100, tmp_path / "go", tmp_path / "log"
    child = Child([sys.executable, "-c", WRITE, str(many), str(go)], os.environ, log)
    try:
        before = await warned(child)
        aside = (tmp_path / "log.1").read_text()
        go.touch()
        after = await warned(child)
    finally:
        child.signal(signal.SIGKILL)
        await over(child)

    assert (["WARNING before"], ["WARNING after"]) == (before, after)
    assert [*(f"INFO {i:099}" for i in range(many)), "WARNING before"] == aside.splitlines()
    assert "WARNING after\n" == log.read_text()
    assert not (tmp_path / "log.1.part").exists() and not (tmp_path / "log.part").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")
async def test_a_process_may_be_woken_late_by_the_clock(tmp_path: Path) -> None:
    late = Child([sys.executable, "-c", SLACK], os.environ, tmp_path / "late", slack_ns=1_234_567)
    usual = Child([sys.executable, "-c", SLACK], os.environ, tmp_path / "usual")
    for child in (late, usual):
        await over(child)

    assert late.last_line == "1234567"
    assert usual.last_line not in ("", "1234567")
