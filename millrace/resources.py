"""What this process has used of the machine, and uses."""

import os
import time
from pathlib import Path

STATM = Path("/proc/self/statm")
PAGE = os.sysconf("SC_PAGE_SIZE")


def resources() -> dict[str, float]:
    """Processor seconds, and bytes of memory where the system tells them."""
    try:
        pages = int(STATM.read_text().split()[1])
    except OSError:
        return {"cpu_s": time.process_time()}
    return {"cpu_s": time.process_time(), "rss": float(pages * PAGE)}
