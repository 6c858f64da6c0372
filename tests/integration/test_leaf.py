"""A leaf node, as `millrace broker --leaf` configures it: what its link carries, and what it does not.

Streams over it, and what they survive, are tried in tests/chaos.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from nats.aio.client import Client

from millrace.bus import Bus
from millrace.nats_conf import CONFIG
from millrace.provision import URL, provision
from millrace.subjects import Role, inbox_prefix, rights
from tests.kit.cluster import FAR, PORT, Cluster

LINKED_S = 60.0


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A hub, and a leaf node that somebody has taken over: its own users may do anything there."""
    made = Cluster(tmp_path / "nats", nodes=1, far="leaf")
    config = tmp_path / "nats" / FAR / "nats" / CONFIG
    password = made.url(Role.ENGINE, far=True).split(":")[2].split("@")[0]
    before, _, after = config.read_text().partition("authorization {")
    _, _, rest = after.partition("\n}\n")
    user = f'authorization {{ user: engine, password: "{password}" }}\n'
    config.write_text(before + user + rest)
    await made.up()
    yield made
    await made.down()


@pytest.fixture
async def join() -> AsyncIterator[Callable[[str], Awaitable[Client]]]:
    joined: list[Client] = []

    async def open_one(url: str, role: Role = Role.ENGINE) -> Client:
        client = Client()
        await client.connect(url, allow_reconnect=False, inbox_prefix=inbox_prefix(role).encode())
        joined.append(client)
        return client

    yield open_one
    for client in joined:
        await client.close()


Join = Callable[..., Awaitable[Client]]


async def crosses(speaker: Client, hearer: Client, subject: str) -> bool:
    """Whether what is said arrives. What is allowed is said after it, and has to; twice, as their ways may
    have come about just between the two."""
    sub = await hearer.subscribe(subject)
    end = await hearer.subscribe("mr.here.engine")
    await hearer.flush()
    async with asyncio.timeout(LINKED_S):
        while end.pending_msgs < 2:
            await speaker.publish(subject, b"")
            await speaker.publish("mr.here.engine", b"")
            await speaker.flush()
            await asyncio.sleep(0.05)
    heard = sub.pending_msgs > 0
    for each in (sub, end):
        await each.unsubscribe()
    return heard


async def test_a_leaf_node_may_do_what_an_engine_may(hub: Cluster, join: Join) -> None:
    """Whoever has it can neither settle jobs nor speak as a gateway, whatever its own server allows."""
    leaf = await join(hub.url(Role.ENGINE, far=True))
    gateway = await join(hub.url(Role.GATEWAY), Role.GATEWAY)

    assert await crosses(leaf, gateway, "mr.gw.gateway_1")
    assert not await crosses(leaf, gateway, "mr.here.gateway")
    assert not await crosses(leaf, gateway, "mr.here.detokenizer")


async def test_a_leaf_node_hears_what_an_engine_hears(hub: Cluster, join: Join) -> None:
    """Neither prompts nor what others say to a gateway leave the hub."""
    leaf = await join(hub.url(Role.ENGINE, far=True))
    gateway = await join(hub.url(Role.GATEWAY), Role.GATEWAY)
    hidden = [await leaf.subscribe(subject) for subject in ("mr.tok.*", "mr.detok.*", "_INBOX_gateway.>")]
    shown = await leaf.subscribe("mr.eng.*")
    await leaf.flush()
    async with asyncio.timeout(LINKED_S):
        while not shown.pending_msgs:
            for subject in ("mr.tok.sim", "mr.detok.detokenizer_1", "_INBOX_gateway.x", "mr.eng.engine_1"):
                await gateway.publish(subject, b"")
            await gateway.flush()
            await asyncio.sleep(0.05)

    assert [sub.pending_msgs for sub in hidden] == [0, 0, 0]


async def test_its_password_is_no_clients(hub: Cluster) -> None:
    """What a leaf node logs in with opens the port for leaf nodes alone."""
    password = (hub.folder / FAR / URL).read_text().split(":")[2].split("@")[0]

    with pytest.raises(PermissionError):
        await Bus.connect(f"nats://leaf_{FAR}:{password}@{hub.hosts[0]}:{PORT}", Role.ENGINE, "test")


def test_its_machine_gets_its_own_passwords_alone(tmp_path: Path) -> None:
    """None of the hub's is in its folder, and both are kept when it is written again."""

    def provisioned() -> dict[Path, str]:
        provision(tmp_path, ["nats:4222"], "/data", leaves={"edge": "127.0.0.1:4222"})
        return {path: path.read_text() for path in (tmp_path / "edge").rglob("*") if path.is_file()}

    first = provisioned()
    hubs = {(tmp_path / role / URL).read_text().split(":")[2].split("@")[0] for role in Role}

    assert len(first) == 3
    assert not [path for path, text in first.items() if any(secret in text for secret in hubs)]
    assert first == provisioned()


def test_a_leaf_has_the_rights_of_an_engine_in_the_hubs_domain() -> None:
    """The pull is named by the domain, and nothing else of JetStream's is open to it."""
    far = rights(Role.ENGINE, "$JS.millrace.API")["publish"]

    assert [subject for subject in far if subject.startswith("$JS")] == [
        "$JS.millrace.API.CONSUMER.MSG.NEXT.JOBS.*"
    ]


@pytest.mark.parametrize(
    ("joined", "leaves", "why"),
    [
        ({}, {"gateway": "a:1"}, "'gateway' cannot be a name"),
        ({}, {"../x": "a:1"}, "cannot be a name"),
        ({}, {"edge": "a"}, "'a' is not an address"),
        ({"west": ["d:4222"]}, {}, "three servers"),
    ],
)
def test_a_name_or_an_address_that_will_not_do_is_refused(
    tmp_path: Path, joined: dict[str, list[str]], leaves: dict[str, str], why: str
) -> None:
    """By name, and before anything is written."""
    with pytest.raises(ValueError, match=why):
        provision(tmp_path, ["nats:4222"], "/data", joined=joined, leaves=leaves)

    assert list(tmp_path.iterdir()) == []
