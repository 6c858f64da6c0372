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
        self._meminfo = str(self._root / "proc/meminfo")
        # What is there is looked for once: an engine reads these every few moments.
        self._memory = [
            (str(level / limit), str(level / used), str(level / "memory.stat"))
            for level in self._levels("memory")
            for limit, used in (
                ("memory.max", "memory.current"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            )
            if (level / limit).exists()
        ]
        self._cpu = list(self._levels("cpu"))
        self._cpu_stats = [str(path) for level in self._cpu if (path := level / "cpu.stat").exists()]

    def memory(self) -> Memory:
        total, available = self._of_the_system()
        for limit_file, used_file, stat_file in self._memory:
            # What files' cache takes is given back when somebody asks for it, that of weights too: if it
            # counted as used, a small machine would be full for ever.
            limit = _number(limit_file)
            if limit is None or limit >= total:
                continue
            used = _number(used_file) or 0
            stat = _pairs(stat_file)
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
        stats = [_pairs(path) for path in self._cpu_stats]
        return Throttled(
            max((stat.get("nr_periods", 0) for stat in stats), default=0),
            max((stat.get("nr_throttled", 0) for stat in stats), default=0),
        )

    def tasks(self) -> int | None:
        """So many more processes and threads its cgroups allow; None: as many as it likes."""
        bounded = [
            most - (_number(level / "pids.current") or 0)
            for level in self._levels("pids")
            if (most := _number(level / "pids.max")) is not None
        ]
        return min(bounded, default=None)

    def _of_the_system(self) -> tuple[int, int]:
        found: dict[str, int] = {}
        for line in contents(self._meminfo).splitlines():
            key, _, value = line.partition(":")
            if key in ("MemTotal", "MemAvailable"):
                found[key] = int(value.split()[0]) << 10
                if len(found) == 2:
                    break
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


def contents(path: str | Path) -> str:
    """Of one of the system's files. `read_text` asks the system three times as much, and these are read every
    few moments."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(file, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode()
    finally:
        os.close(file)


def _number(path: str | Path) -> int | None:
    """None: there is no such file, or no number in it; "max" is none."""
    try:
        return int(contents(path))
    except (OSError, ValueError):
        return None


def _pairs(path: str) -> dict[str, int]:
    try:
        return {key: int(value) for key, value in (line.split() for line in contents(path).splitlines())}
    except (OSError, ValueError):
        return {}
