"""Large pages, where the kernel has them: what a step reads is looked up once each 2 MiB, not each 4 KiB.

Weights are a file: one that is written lies in large pages of the page cache; one that was dropped, and is
read where it is touched, does not. Keys and values are memory of our own, and lie in them only if that is
asked for: it is taken 2 MiB at a time (docs/decisions/keys-and-values-in-small-pages.md).
"""

import contextlib
import logging
import mmap
import os
from pathlib import Path

LARGE = 2 << 20

SAID = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""What the kernel gives: [always], [madvise] or [never]."""

log = logging.getLogger("millrace.engine")


def advise(memory: mmap.mmap, *, large: bool) -> None:
    """Have it in large pages, or none of it, though the system may give them to everybody. Where they are
    asked for and not given, the log says so."""
    why = ""
    try:
        memory.madvise(mmap.MADV_HUGEPAGE if large else mmap.MADV_NOHUGEPAGE)
        if "[never]" in SAID.read_text():
            why = f"{SAID} says never"
    except (AttributeError, OSError) as error:  # no such advice here, or nobody who says what it did
        why = str(error)
    if large and why:
        log.warning("keys and values may lie in small pages: %s", why)


def draw_in(path: Path) -> None:
    """Read what is not in the page cache yet, in large pages."""
    # It is a matter of speed alone: where it cannot be done, the file is read as any other.
    with contextlib.suppress(AttributeError, OSError), path.open("rb") as file:
        if size := os.fstat(file.fileno()).st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                memory.madvise(mmap.MADV_HUGEPAGE)
                for at in range(0, size, LARGE):
                    memory[at]
