"""One operating system process that lives no longer than its parent: start it, read its log, end it."""

import asyncio
import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from millrace import logs

PR_SET_PDEATHSIG, PR_SET_TIMERSLACK = 1, 29  # linux/prctl.h
LOG_LIMIT = 16 << 20
"""A log longer than this is set aside; one older log is kept."""

ALARMING = re.compile(r"\b(?:WARNING|ERROR|CRITICAL)\b|\[(?:ERR|FTL)\]")  # ours; nats-server's


def _mortal(slack_ns: int) -> Callable[[], None]:
    """What the child does before exec, so that it dies with this process, however that ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def bind() -> None:
        if prctl:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if slack_ns:
                prctl(PR_SET_TIMERSLACK, slack_ns)
        if os.getppid() != parent:  # it died between the fork and here, and no signal will come
            os._exit(1)

    return bind


def _aside(log: Path) -> Path:
    return log.with_name(log.name + ".1")


class Child:
    """Output goes straight to a file, never through a pipe: a paused parent must not block its children."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        pass_fds: Sequence[int] = (),
        slack_ns: int = 0,
    ):
        """`slack_ns`: by which it may be woken late by the clock; 0: as this process."""
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            log.replace(_aside(log))
        self._path = log
        with log.open("ab") as out:
            # Before there is a process that nobody would know of.
            self._log: IO[bytes] = log.open("r+b", buffering=0)
            self._read = os.fstat(out.fileno()).st_size
            self._popen: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(env),
                pass_fds=tuple(pass_fds),
                process_group=0,  # the terminal's Ctrl-C is for the parent, which drains in order
                preexec_fn=_mortal(slack_ns),  # noqa: PLW1509 (there are no threads here)
            )
        self._last = ""
        self._alarms: list[str] = []
        self._exited = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return not self._exited.is_set()

    def reap(self) -> None:
        """To be called on SIGCHLD."""
        if self._popen.poll() is not None:
            self._exited.set()

    async def wait(self) -> int:
        """The exit status, negative for a signal."""
        await self._exited.wait()
        self._collect()
        self._log.close()
        return int(self._popen.returncode)

    def signal(self, number: signal.Signals) -> None:
        # Popen does not signal a process that it has already waited for: the pid may be another's now.
        self._popen.send_signal(number)

    async def stop(self, patience: float) -> int:
        """Ask it to end, and end it if it does not within `patience` seconds."""
        self.signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.wait(), patience)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await self.wait()

    def warnings(self) -> list[str]:
        """What it wrote of level warning or worse since this was last asked, from the level's name on."""
        self._collect()
        if self._read > LOG_LIMIT:
            with contextlib.suppress(OSError):  # no room for it, or somebody has removed it
                self._set_aside()
        alarms, self._alarms = self._alarms, []
        return alarms

    def _set_aside(self) -> None:
        """The process holds its file open, to append: it is copied and emptied. A line that is written in the
        instant between the two is lost."""
        part = _aside(self._path).with_suffix(".part")
        self._log.seek(0)
        try:
            with part.open("wb") as old:
                shutil.copyfileobj(self._log, old)
                old.flush()
                shutil.copyfileobj(self._log, old)
                os.ftruncate(self._log.fileno(), 0)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._read = 0
        part.replace(_aside(self._path))

    def _collect(self) -> None:
        if self._log.closed or os.fstat(self._log.fileno()).st_size <= self._read:
            return
        self._log.seek(self._read)
        text = self._log.read(1 << 20)
        if self.alive and len(text) < 1 << 20:  # a line still being written is read next time
            text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        lines = [logs.plain(line) for line in text.decode(errors="replace").splitlines() if line.strip()]
        if lines:
            self._last = lines[-1].strip()[:500]
        for line in lines:
            if level := ALARMING.search(line[:80]):
                self._alarms.append(line[level.start() :][:500])

    @property
    def last_line(self) -> str:
        """The last thing it wrote: of one that crashed, most often why."""
        return self._last


def ending(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
