"""A file system of a few megabytes."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SIZE = "8m"


@contextlib.contextmanager
def small(folder: Path) -> Iterator[str]:
    """A few megabytes for the job store; otherwise says why not."""
    store = folder / "nats" / "jetstream"
    store.mkdir(parents=True, mode=0o700)
    (folder / "nats").chmod(0o700)
    if sys.platform != "linux" or not shutil.which("mount"):
        yield "tmpfs is Linux's"
        return
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(store)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        yield f"no right to mount a small file system ({made.stderr.strip()}); try `unshare -Urm make chaos`"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", "-l", str(store)], check=False)
