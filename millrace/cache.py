"""What this machine keeps of models, so as not to make it again. Each tells what it is of.

    <root>/<kind>/<name>/copy.json      of what; its date is that of the last use

A copy may always go: whoever has it mapped keeps it, and who wants it next makes it again.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from millrace import whole
from millrace.xdg import ours

NOTE = "copy.json"
KINDS = ("converted", "prepared")

DAY_S = 86_400.0
UNUSED_S = 30 * DAY_S
LIMIT = 64 << 30
"""Bytes of all copies together; those that were used longest ago make room."""


class Of(msgspec.Struct, frozen=True):
    """What a copy is of. Of one source, for one machine, only the newest version is wanted."""

    source: str  # a model's folder
    version: str  # of the source's content, and of what made the copy
    machine: str = ""  # "": good for any


@dataclass(frozen=True)
class Copy:
    path: Path
    of: Of | None  # None: of an earlier version of Millrace, which wrote no notes
    used: float
    bytes: int


def root() -> Path:
    return ours("XDG_CACHE_HOME")


def there(copy: Path) -> bool:
    """Not if it may not be looked for, either."""
    return os.path.exists(copy)  # noqa: PTH110 - Path's raises


def writable(root: Path) -> None:
    """ValueError if no copy can be made there, which says what mends it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(
            f"this machine's copy of it cannot be kept in {root} ({error.strerror}): "
            f"XDG_CACHE_HOME chooses another folder"
        ) from None


def note(made: Path, of: Of) -> None:
    (made / NOTE).write_bytes(msgspec.json.encode(of))


def used(copy: Path) -> Path:
    with contextlib.suppress(OSError):  # of somebody else, or on a disk that cannot be written
        os.utime(copy / NOTE if (copy / NOTE).exists() else copy)
    return copy


def copies(root: Path) -> list[Copy]:
    found = []
    for path in (path for kind in KINDS for path in root.glob(f"{kind}/*")):
        with contextlib.suppress(OSError):  # it goes in this moment
            if path.is_dir() and not path.name.startswith("."):
                size = sum({each.stat().st_ino: each.stat().st_size for each in path.iterdir()}.values())
                there = path / NOTE if (path / NOTE).exists() else path
                found.append(Copy(path, _of(path), there.stat().st_mtime, size))
    return found


def _of(path: Path) -> Of | None:
    try:
        return msgspec.json.decode((path / NOTE).read_bytes(), type=Of)
    except (OSError, msgspec.DecodeError):
        return None


def stale(
    found: Iterable[Copy], now: float, gone: Iterable[Path] = (), limit: int = LIMIT
) -> dict[Path, str]:
    """Copies that are not wanted any more, and why. `gone`: sources that are not there now."""
    missing = {str(path) for path in gone}
    newest: dict[tuple[str, str, str], Copy] = {}
    ordered = sorted(found, key=lambda copy: copy.used, reverse=True)  # the last used first
    kept, why = 0, {}
    for copy in ordered:
        if copy.of:
            key = (copy.path.parent.name, copy.of.source, copy.of.machine)
            newer = newest.setdefault(key, copy)
            if newer.of and newer.of.version != copy.of.version:
                why[copy.path] = "there is a newer one"
                continue
            if copy.of.source in missing and now - copy.used > DAY_S:
                why[copy.path] = f"{copy.of.source} is not there any more"
                continue
        if now - copy.used > UNUSED_S:
            why[copy.path] = "unused for a month"
        elif kept + copy.bytes > limit:
            why[copy.path] = "others were used since, and the cache is full"
        else:
            kept += copy.bytes
    return why


def tidy(root: Path, *, everything: bool = False) -> dict[Path, str]:
    """Remove what is not wanted any more, and what killed processes left; what it was, and why."""
    removed = dict.fromkeys(whole.sweep(root), "left by a process that was killed")
    found = copies(root)
    if everything:
        why = {copy.path: "asked for" for copy in found}
    else:
        sources = {Path(copy.of.source) for copy in found if copy.of}
        why = stale(found, time.time(), [path for path in sources if not path.exists()])
    for path, reason in why.items():
        with contextlib.suppress(OSError):
            whole.remove(path)
            removed[path] = reason
    return removed
