"""What nats-server is told: its users and their rights, its streams' room, and how it meets other servers.

`render` is a pure function, so that a server run some other way gets the same users with the same rights.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from millrace import subjects
from millrace.subjects import Role

MAX_PAYLOAD = subjects.JOBS.max_msg_size + (64 << 10)
"""A little above what the job queue takes, so that an oversized job meets the queue's typed refusal and
not a closed connection."""

MAX_STORE = sum(stream.max_bytes for stream in subjects.STREAMS) + (256 << 20)
"""Left out, it would be a share of the free disk, and a nearly full one could not have the streams at all."""

CONFIG = "nats.conf"
ROUTE, GATEWAY, LEAF = "route", "gateway", "leaf"  # the users by which servers know each other
HOME = "millrace"
"""The cluster that has the streams; their domain too, where there are leaf nodes."""


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


@dataclass(frozen=True)
class Joined:
    """One server's part among clusters that are joined: each cluster's name, and where its servers are."""

    listen: str
    told: str  # the address by which other clusters reach this server
    clusters: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Leaves:
    """Where a hub's server waits for leaf nodes, and the password of each."""

    listen: str
    told: str  # the address by which they reach this server
    passwords: Mapping[str, str]


@dataclass(frozen=True)
class Hub:
    """Where a leaf node finds its hub."""

    urls: tuple[str, ...]  # with its user and password


def render(
    *,
    host: str,
    port: int,
    passwords: Mapping[Role, str],
    store: str = "",
    name: str = "",
    monitor: str = "",
    between: str = "",
    cluster_name: str = HOME,
    cluster: Cluster | None = None,
    joined: Joined | None = None,
    leaves: Leaves | None = None,
    hub: Hub | None = None,
    tls: Tls | None = None,
) -> str:
    """nats-server's configuration. A password that is `$NAME` stays a reference to that variable; without a
    `store` the server keeps no streams; `between` is the password that servers show each other."""
    # A leaf node reaches the streams by their domain's name. What comes over its link may do what an engine
    # may, whoever has that machine.
    far = subjects.rights(Role.ENGINE, f"$JS.{HOME}.API")
    users = [_user(role, word, far if hub else subjects.rights(role)) for role, word in passwords.items()]
    if leaves:
        users += [_user(f"{LEAF}_{leaf}", word, far, "LEAFNODE") for leaf, word in leaves.passwords.items()]
    parts = [
        "# Written by Millrace; the rights are those of millrace.subjects.rights.",
        *([f"server_name: {_text(name)}"] if name else []),
        f"""\
listen: {_text(f"{host}:{port}")}
max_payload: {MAX_PAYLOAD}

# A process that is cut off shall know it within seconds, and so shall the server.
ping_interval: "1s"
ping_max: 2
write_deadline: "2s"
""",
    ]
    if store:
        parts.append(f"""\
jetstream {{
  store_dir: {_text(store)}
  max_file_store: {MAX_STORE}{f"{chr(10)}  domain: {HOME}" if leaves else ""}
}}
""")
    parts.append(f"""\
# There is no no_auth_user: whoever names none of these is refused.
authorization {{
  users = [
{chr(10).join(users)}
  ]
}}
""")
    if monitor:
        parts.append(f"http: {_text(monitor)}\n")
    if tls:
        parts.append(f"tls {_tls(tls)}\n")
    secured = f"tls {_tls(tls)}" if tls else "# Its traffic is not encrypted."
    if cluster:
        parts.append(f"""\
cluster {{
  name: {cluster_name}
  listen: {_text(cluster.listen)}
  authorization {{ user: {ROUTE}, password: {_text(between)} }}
  routes: {_text(_urls(ROUTE, between, cluster.routes))}
  {secured}
}}
""")
    if joined:
        others = [
            f"{{ name: {other}, urls: {_text(_urls(GATEWAY, between, addresses))} }}"
            for other, addresses in joined.clusters.items()
        ]
        parts.append(f"""\
gateway {{
  name: {cluster_name}
  listen: {_text(joined.listen)}
  advertise: {_text(joined.told)}
  authorization {{ user: {GATEWAY}, password: {_text(between)} }}
  gateways: [
    {f"{chr(10)}    ".join(others)}
  ]
  {secured}
}}
""")
    if leaves:
        parts.append(f"""\
leafnodes {{
  listen: {_text(leaves.listen)}
  advertise: {_text(leaves.told)}
  {secured}
}}
""")
    if hub:
        parts.append(f"""\
# There is one account, with no name of its own.
default_js_domain {{ "$G": {HOME} }}

leafnodes {{
  reconnect: 1
  remotes: [
    {{ urls: {_text(list(hub.urls))} {f", {secured}" if tls else ""} }}
  ]
}}
""")
    return "\n".join(parts)


def _urls(user: str, password: str, addresses: Sequence[str]) -> list[str]:
    return [f"nats://{user}:{password}@{address}" for address in addresses]


def _tls(tls: Tls) -> str:
    files = {"ca_file": tls.ca, "cert_file": tls.cert, "key_file": tls.key}
    return f"{{ {', '.join(f'{name}: {_text(path)}' for name, path in files.items())}, verify: true }}"


def _user(name: str, password: str, rights: Mapping[str, list[str]], kind: str = "") -> str:
    secret = password if password.startswith("$") else _text(password)
    only = f"\n      allowed_connection_types: [{kind}]" if kind else ""
    return f"""\
    {{
      user: {name}
      password: {secret}{only}
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


def write(path: Path, text: str) -> None:
    """The file is never readable by others, not even for a moment, and never half there."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)
