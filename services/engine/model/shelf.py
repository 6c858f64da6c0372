"""Blocks of prefixes in a file: more than memory has room for, and there again after a restart.

    header                      one page: what the blocks are of
    places x (name, digest)     64 bytes each; zeros where nothing lies
    places x contents

A block counts if its digest is that of its name and contents: one that was half written when the machine
stopped, or that the disk has changed, is forgotten when it is looked at. The file is read and written, not
mapped: where the disk is full, writing says so, and touching a mapping ends the process.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

HEADER = 4096
ENTRY = 64
NOTHING = bytes(32)
ENGINES = 64  # that may share a folder

AGAIN_S = 60.0
"""A disk that did not take a block is left alone so long: each try costs a step, and a line in the log."""

log = logging.getLogger("millrace.engine")

Array = npt.NDArray[Any]


class Header(msgspec.Struct, frozen=True):
    kind: str  # the model and the machine: only there are these bytes what computing would give
    block: int  # bytes
    places: int


class FileShelf:
    outlives = True

    def __init__(self, folder: Path, size: int, kind: str, like: Array):
        """At most `size` bytes in the first file of the folder that no other engine has, for blocks like this
        one. Raises OSError."""
        self.counts: Counter[str] = Counter()
        self._like = like
        self._fd = _taken(folder)
        header = Header(kind, like.nbytes, max(0, size - HEADER) // (ENTRY + like.nbytes))
        self.places = header.places
        self._contents = HEADER + ENTRY * header.places
        self._at: OrderedDict[bytes, int] = OrderedDict()  # oldest first
        self._found(header)
        taken = set(self._at.values())
        self._free = [place for place in reversed(range(self.places)) if place not in taken]
        self._idle_until = 0.0

    def _found(self, header: Header) -> None:
        """What an earlier engine has left, if it was of the same kind."""
        expected = msgspec.json.encode(header).ljust(HEADER)
        if os.pread(self._fd, HEADER, 0) != expected:
            if os.fstat(self._fd).st_size:
                self.counts["prefix_files_ignored"] += 1
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, expected, 0)
            return
        index = os.pread(self._fd, ENTRY * self.places, HEADER)
        for place in range(len(index) // ENTRY):
            name = index[place * ENTRY : place * ENTRY + 32]
            if name != NOTHING:
                self._at[name] = place
        self.counts["prefixes_found"] = len(self._at)

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, name: bytes) -> bool:
        return name in self._at

    def put(self, name: bytes, contents: Array) -> None:
        """It may push out what was used longest ago. What cannot be written is not kept."""
        if name in self._at or not self.places or time.monotonic() < self._idle_until:
            return
        place = self._free.pop() if self._free else self._at.popitem(last=False)[1]
        raw = np.ascontiguousarray(contents)
        try:
            _write(self._fd, raw.data.cast("B"), self._contents + place * raw.nbytes)
            _write(self._fd, name + _digest(name, raw), HEADER + place * ENTRY)
        except OSError as error:
            log.warning("no prefixes are written for %g s: %s", AGAIN_S, error)
            self._idle_until = time.monotonic() + AGAIN_S
            self._free.append(place)
            return
        self._at[name] = place

    def take(self, name: bytes) -> Array | None:
        place = self._at.get(name)
        if place is None:
            return None
        contents = np.empty_like(self._like)
        raw = contents.data.cast("B")
        digest = b""
        with contextlib.suppress(OSError):
            if os.preadv(self._fd, [raw], self._contents + place * len(raw)) == len(raw):
                digest = os.pread(self._fd, 32, HEADER + place * ENTRY + 32)
        if digest != _digest(name, contents):
            self.counts["prefixes_damaged"] += 1
            del self._at[name]
            self._free.append(place)
            return None
        return contents

    def touch(self, name: bytes) -> None:
        self._at.move_to_end(name)

    def close(self) -> None:
        os.close(self._fd)


def _taken(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(ENGINES):
        fd = os.open(folder / f"prefixes-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            os.close(fd)
    raise OSError(f"{ENGINES} engines have their prefixes in {folder} already")


def _digest(name: bytes, contents: Array) -> bytes:
    made = hashlib.sha256(name)
    made.update(contents.data.cast("B"))
    return made.digest()


def _write(fd: int, data: bytes | memoryview, at: int) -> None:
    if os.pwrite(fd, data, at) != len(data):
        raise OSError("the disk is full")
