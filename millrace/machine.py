"""What this process may use of its machine: all of it, or less where a cgroup says so (versions 1 and 2)."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from millrace.capacity import Memory


@dataclass(frozen=True)
class Throttled:
    """Periods of the processor's time that a cgroup was given, and those it was stopped in."""

    periods: int
    stopped: int


class Machine:
    def __init__(self, root: str = "/"):
        """`root`: where /proc and /sys are, if a container has the machine's elsewhere."""
        self._root = Path(root)
        self._memory = list(self._levels("memory"))
        self._cpu = list(self._levels("cpu"))

    def memory(self) -> Memory:
        total, available = self._meminfo()
        for level in self._memory:
            # What files' cache takes is given back when somebody asks for it, that of weights too: if it
            # counted as used, a small machine would be full for ever.
            limit = _number(level / "memory.max", level / "memory.limit_in_bytes")
            if limit is None or limit >= total:
                continue
            used = _number(level / "memory.current", level / "memory.usage_in_bytes") or 0
            stat = _pairs(level / "memory.stat")
            cached = sum(
                stat.get(f"total_{kind}", stat.get(kind, 0)) for kind in ("active_file", "inactive_file")
            )
            total, available = limit, min(available, max(0, limit - used + cached))
        return Memory(total, available)

    def cpus(self) -> float:
        """Processors' worth of time."""
        found = float(len(os.sched_getaffinity(0)))
        for level in self._cpu:
            quota: int | None = None
            period = 0
            with contextlib.suppress(OSError, ValueError):
                quota, period = map(int, (level / "cpu.max").read_text().split())
            if quota is None:
                quota = _number(level / "cpu.cfs_quota_us")
                period = _number(level / "cpu.cfs_period_us") or 0
            if quota and quota > 0 and period > 0:
                found = min(found, quota / period)
        return found

    def throttled(self) -> Throttled:
        stats = [_pairs(level / "cpu.stat") for level in self._cpu]
        return Throttled(
            max((stat.get("nr_periods", 0) for stat in stats), default=0),
            max((stat.get("nr_throttled", 0) for stat in stats), default=0),
        )

    def _meminfo(self) -> tuple[int, int]:
        found: dict[str, int] = {}
        for line in (self._root / "proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("MemTotal", "MemAvailable"):
                found[key] = int(value.split()[0]) << 10
        return found["MemTotal"], found["MemAvailable"]

    def _levels(self, controller: str) -> Iterator[Path]:
        """The cgroups that bound this process, its own first."""
        try:
            lines = (self._root / "proc/self/cgroup").read_text().splitlines()
        except OSError:
            return
        mounted = self._root / "sys/fs/cgroup"
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = mounted / controller if controllers else mounted
            own = root / path.lstrip("/")
            # Inside of a container the path may be the machine's, and what is mounted the container's own.
            for level in (own, *own.parents) if own.is_dir() else (root,):
                yield level
                if level == root:
                    break


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _number(*paths: Path) -> int | None:
    """From the first of these files that is there; "max" is none."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
    return None


def _pairs(path: Path) -> dict[str, int]:
    try:
        return {key: int(value) for key, value in (line.split() for line in path.read_text().splitlines())}
    except (OSError, ValueError):
        return {}
