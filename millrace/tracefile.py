"""The trace file of `millrace up`: one trace a line in OTLP's JSON, bounded, and readable after any death.

A line is written in one call, so that a process killed in the middle of it spoils that line alone. Each
gateway has a file of its own, named after its seat.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from millrace.spans import Resource, Span, otlp

LIMIT = 8 << 20
"""A file this long is set aside, and the one before it goes: a few thousand requests are kept."""

FOLDER = "traces"
PATTERN = "*.jsonl*"


class TraceFile:
    def __init__(self, path: Path, resource: Resource, limit: int = LIMIT):
        self._path = path
        self._resource = resource
        self._limit = limit
        self._fd, self._size = self._open()

    def _open(self) -> tuple[int, int]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = os.fstat(fd).st_size
        self._cut = bool(size) and os.pread(fd, 1, size - 1) != b"\n"  # a kill or a full disk did
        return fd, size

    def _anew(self) -> None:
        # The old one is closed last: if this fails its number is still ours, and no client's connection.
        old = self._fd
        self._fd, self._size = self._open()
        os.close(old)

    def write(self, traces: Sequence[Sequence[Span]]) -> None:
        if not os.fstat(self._fd).st_nlink:  # somebody has removed it
            self._anew()
        for trace in traces:
            line = otlp(trace, self._resource) + b"\n"
            if self._size and self._size + len(line) > self._limit:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._anew()
            line = b"\n" + line if self._cut else line
            written = os.write(self._fd, line)
            self._cut = written < len(line)
            self._size += written


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Every line of the state directory's trace files that is whole, in no order."""
    for path in sorted((folder / FOLDER).glob(PATTERN)):
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:  # set aside just now
            continue
        for line in lines:
            try:
                data = msgspec.json.decode(line)
            except msgspec.DecodeError:
                continue
            if isinstance(data, dict):
                yield data
