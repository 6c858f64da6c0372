"""A folder that is there whole or not at all, made by one process at a time.

It is made in a workspace beside its place, and renamed at the end. Whoever makes it holds a lock on the
workspace, which the kernel takes back from the dead: one without a holder was left by a killed process.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

SUFFIX = ".partial"


@contextlib.contextmanager
def making(out: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """A path to make a folder at, which becomes `out` at the end of the block; what fails leaves nothing.

    While another process makes the same, this one waits, after a word to `waiting`. FileExistsError if `out`
    is there already, or is then.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    workspace = out.with_name(f".{out.name}{SUFFIX}")
    held = _take(workspace, waiting)
    try:
        if out.exists():
            raise FileExistsError(f"{out} exists already")
        made = workspace / "whole"
        shutil.rmtree(made, ignore_errors=True)  # of one that was killed
        yield made
        for path in (*made.rglob("*"), made):
            _sync(path)
        if out.exists():
            raise FileExistsError(f"{out} was made meanwhile")
        made.rename(out)
        _sync(out.parent)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(held)


def remove(folder: Path) -> None:
    """Gone at once, whatever becomes of this process; `sweep` ends what it could not."""
    workspace = folder.with_name(f".{folder.name}{SUFFIX}")
    held = _take(workspace, lambda: None)
    try:
        folder.rename(workspace / "removed")
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(held)


def sweep(root: Path) -> list[Path]:
    """Remove what killed processes left below a folder; what one is at work on stays."""
    swept = []
    for parent, names, _ in os.walk(root):  # unlike glob, it bears with what goes while it looks
        workspaces = [name for name in names if name.startswith(".") and name.endswith(SUFFIX)]
        names[:] = [name for name in names if name not in workspaces]
        for workspace in (Path(parent, name) for name in workspaces):
            with contextlib.suppress(OSError):  # another process sweeps too, or ends its work
                held = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(workspace)
                    swept.append(workspace)
                finally:
                    os.close(held)
    return swept


def _take(workspace: Path, waiting: Callable[[], object]) -> int:
    """Hold the lock of a workspace that is still in its place once it is held."""
    while True:
        workspace.mkdir(exist_ok=True)
        try:
            held = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its holder ended in this moment
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(held, fcntl.LOCK_EX)
        except BaseException:
            os.close(held)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), workspace.stat()):
                return held
        os.close(held)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
