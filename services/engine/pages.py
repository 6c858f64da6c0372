"""A file of weights in large pages of the page cache, where the kernel has them for its file system.

A step of one row reads all weights once, and looking up where each 4 KiB of them lie is a part of that. A
file that is written lies in large pages; one that was dropped, and is read where it is touched, does not.
"""

import contextlib
import mmap
import os
from pathlib import Path

LARGE = 2 << 20


def draw_in(path: Path) -> None:
    """Read what is not in the page cache yet, in large pages."""
    # It is a matter of speed alone: where it cannot be done, the file is read as any other.
    with contextlib.suppress(AttributeError, OSError), path.open("rb") as file:
        if size := os.fstat(file.fileno()).st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                memory.madvise(mmap.MADV_HUGEPAGE)
                for at in range(0, size, LARGE):
                    memory[at]
