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
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._size += os.write(self._fd, b"\n")  # after a line that a kill or a full disk cut

    def write(self, traces: Sequence[Sequence[Span]]) -> None:
        for trace in traces:
            line = otlp(trace, self._resource) + b"\n"
            if self._size and self._size + len(line) > self._limit:
                os.close(self._fd)
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._open()
            self._size += os.write(self._fd, line)


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
