"""The unix socket over which `millrace ps`, `scale` and `restart` talk to a running `millrace up`.

One JSON line asks; any number of `said` lines tell of the progress; a `done` or `failed` line ends it.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from millrace import columns
from millrace.settings import Up
from millrace.xdg import ours

SOCKET = "control.sock"
ANSWER_S = 5.0
"""A supervisor that does not take an order within this time is stopped or hangs."""


class ControlError(Exception):
    """An order could not be given or was not carried out; the message is for the user."""


class Row(msgspec.Struct, frozen=True):
    """One process of the service, as `millrace ps` prints it."""

    role: str
    pid: int
    id: str
    state: str
    load: int
    room: int  # 0: no limit of its own
    restarts: int
    model: str
    pressure: str = ""  # tight or short, of an engine

    @property
    def shown(self) -> str:
        return self.pressure if self.pressure and self.state == "ready" else self.state


class Ps(msgspec.Struct, frozen=True, tag="ps"):
    pass


class Scale(msgspec.Struct, frozen=True, tag="scale"):
    role: str
    count: int


class Restart(msgspec.Struct, frozen=True, tag="restart"):
    role: str = ""  # empty: every role


class Said(msgspec.Struct, frozen=True, tag="said"):
    text: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    url: str
    rows: list[Row]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    message: str


Order = Ps | Scale | Restart
Say = Callable[[str], None]

_orders = msgspec.json.Decoder(Order)
_answers: msgspec.json.Decoder[Said | Done | Failed] = msgspec.json.Decoder(Said | Done | Failed)


class Commanded(Protocol):
    """Whom the orders are for."""

    @property
    def url(self) -> str: ...
    def rows(self) -> list[Row]: ...
    async def scale(self, role: str, count: int, say: Say) -> None: ...
    async def restart(self, role: str, say: Say) -> None: ...


# -- where a service is


def default_root() -> Path:
    return ours("XDG_STATE_HOME")


def state_dir(settings: Up) -> Path:
    if settings.state_dir:
        return Path(settings.state_dir).expanduser().absolute()
    return default_root() / str(settings.port)


@contextlib.contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """A path to the socket that fits the 107 bytes a socket's path may have, however long the folder's is."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


def _dial(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(ANSWER_S)
        with _short_path(folder) as path:
            sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def answers(folder: Path) -> bool:
    """Whether a service runs with its state there."""
    with contextlib.suppress(OSError):
        _dial(folder).close()
        return True
    return False


def find(root: Path) -> Path:
    """The state directory of the one service that runs below `root`."""
    running = [folder for folder in sorted(root.glob("*/")) if answers(folder)]
    if not running:
        raise ControlError(f"no service is running (none has its state below {root})")
    if len(running) > 1:
        listed = "".join(f"\n  --state-dir {folder}" for folder in running)
        raise ControlError(f"several services are running; say which:{listed}")
    return running[0]


# -- the asking side


def order(folder: Path, what: Order, say: Say) -> Done:
    """Give an order and wait until it is done."""
    try:
        sock = _dial(folder)
    except OSError as error:
        raise ControlError(f"no service is running with its state in {folder} ({error.strerror})") from None
    with sock, sock.makefile("rb") as lines:
        try:
            sock.sendall(msgspec.json.encode(what) + b"\n")
            for line in lines:
                sock.settimeout(None)  # it was taken: draining takes what it takes, and tells of it meanwhile
                match _answers.decode(line):
                    case Said(text):
                        say(text)
                    case Failed(message):
                        raise ControlError(message)
                    case Done() as done:
                        return done
        except TimeoutError:
            raise ControlError(f"the service of {folder} does not answer") from None
        except OSError as error:
            raise ControlError(f"the service of {folder} went away: {error}") from None
    raise ControlError(f"the service of {folder} ended before this was done")


def table(rows: list[Row]) -> str:
    head = ("ROLE", "PID", "ID", "STATE", "LOAD", "RESTARTS", "MODEL")
    cells = [
        (
            row.role,
            str(row.pid),
            row.id,
            row.shown,
            f"{row.load}/{row.room}" if row.room else str(row.load),
            str(row.restarts),
            row.model,
        )
        for row in rows
    ]
    return columns.table(head, cells)


# -- the answering side


def there(folder: Path) -> bool:
    """Whether a service with its state there can be found."""
    return (folder / SOCKET).exists()


def _bind(folder: Path) -> socket.socket:
    (folder / SOCKET).unlink(missing_ok=True)  # of a service that was killed; ours is the only one here
    sock = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        with _short_path(folder) as path:
            sock.bind(path)
    finally:
        os.umask(mask)
    return sock


@contextlib.asynccontextmanager
async def serve(folder: Path, commanded: Commanded) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Take orders until the end of the block. What it gives makes the socket anew, if that was removed."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        talks.add(task)
        try:
            await _talk(commanded, reader, writer)
        finally:
            talks.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(talk, sock=_bind(folder))

    async def again() -> None:
        nonlocal server
        server.close()
        server = await asyncio.start_unix_server(talk, sock=_bind(folder))

    try:
        yield again
    finally:
        server.close()
        (folder / SOCKET).unlink(missing_ok=True)
        for task in talks:
            task.cancel()
        if talks:
            await asyncio.wait(talks)


async def _talk(commanded: Commanded, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    def answer(what: Said | Done | Failed) -> None:
        if not writer.is_closing():
            writer.write(msgspec.json.encode(what) + b"\n")

    def say(text: str) -> None:
        answer(Said(text))

    with contextlib.suppress(OSError):
        line = await reader.readline()
        if not line:
            return  # only looking whether somebody is here
        try:
            await _obey(commanded, _orders.decode(line), say)
            answer(Done(commanded.url, commanded.rows()))
        except (msgspec.MsgspecError, ControlError) as error:
            answer(Failed(str(error)))
        except asyncio.CancelledError:
            answer(Failed("the service is being stopped"))
            raise
        await writer.drain()


def _obey(commanded: Commanded, what: Order, say: Say) -> Awaitable[None]:
    match what:
        case Scale(role, count):
            return commanded.scale(role, count, say)
        case Restart(role):
            return commanded.restart(role, say)
        case Ps():
            return _nothing()


async def _nothing() -> None:
    pass
