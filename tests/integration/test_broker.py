"""The embedded nats-server: who may do what, on the real server."""

import asyncio
import base64
import json
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from millrace import nats_conf, subjects
from millrace.bus import Bus, Inbox
from millrace.messages import Here
from millrace.provision import provision
from millrace.subjects import Role
from millrace.telemetry import Context
from millrace.up.broker import Broker


@contextmanager
def started(made: Broker) -> Iterator[None]:
    with made.log.open("ab") as log:
        process = subprocess.Popen(made.command(), stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Broker]:
    made = Broker.prepare(tmp_path / "nats")
    try:
        with started(made):
            await asyncio.wait_for(made.ready(), 60)
            yield made
    finally:
        made.close()


class Peer:
    """One client of the server, and what the server refused it."""

    def __init__(self, client: Client):
        self.client = client
        self.refused: list[str] = []

    @classmethod
    async def join(cls, server: Broker, role: Role) -> "Peer":
        client = Client()
        peer = cls(client)

        async def note(error: Exception) -> None:
            peer.refused.append(str(error).lower())

        await client.connect(
            server.url(role),
            error_cb=note,
            allow_reconnect=False,
            inbox_prefix=subjects.inbox_prefix(role).encode(),
        )
        return peer

    async def may(self, act: Awaitable[object]) -> bool:
        """The server answers in order: a refusal is here before the answer to the last flush."""
        self.refused.clear()
        await act
        await self.client.flush(30)  # nats-py sends this one's PING before what is still in its buffer
        await self.client.flush(30)
        return not any("permissions violation" in text for text in self.refused)

    async def may_publish(self, subject: str) -> bool:
        return await self.may(self.client.publish(subject, b""))

    async def may_hear(self, subject: str) -> bool:
        return await self.may(self.client.subscribe(subject))


@pytest.fixture
async def join(server: Broker) -> AsyncIterator[Callable[[Role], Awaitable[Peer]]]:
    joined: list[Peer] = []

    async def open_one(role: Role) -> Peer:
        joined.append(await Peer.join(server, role))
        return joined[-1]

    yield open_one
    for peer in joined:
        await peer.client.close()


Join = Callable[[Role], Awaitable[Peer]]


async def test_each_role_can_do_what_its_rights_say(join: Join) -> None:
    """Every subject in a role's rights is open to it."""
    for role in Role:
        peer = await join(role)
        rights = subjects.rights(role)
        for subject in rights["publish"]:
            assert await peer.may_publish(subject.replace("*", "x").replace(">", "x")), (role, subject)
        for subject in rights["subscribe"]:
            assert await peer.may_hear(subject), (role, subject)


async def test_no_role_can_use_a_subject_that_only_others_have(join: Join) -> None:
    """What is in another role's rights and not in its own is refused, in both directions."""
    table = {role: subjects.rights(role) for role in Role}
    for verb in ("publish", "subscribe"):
        everything = {subject for rights in table.values() for subject in rights[verb]}
        for role in Role:
            peer = await join(role)
            for subject in sorted(everything - set(table[role][verb])):
                name = subject.replace("*", "x").replace(">", "x")
                may = await (peer.may_publish(name) if verb == "publish" else peer.may_hear(subject))

                assert not may, (role, verb, subject)


@pytest.mark.parametrize("role", list(Role))
async def test_nobody_can_listen_to_everything(join: Join, role: Role) -> None:
    """No user may subscribe to `>`, to the JetStream API or to another role's inbox."""
    peer = await join(role)

    for subject in (">", "mr.>", "_INBOX.>", "$JS.>", "$SYS.>"):
        assert not await peer.may_hear(subject), subject


async def test_the_operator_reads_the_letters_and_changes_nothing(join: Join) -> None:
    """What a job was given up for can be looked up with the operator's password, and nothing else."""
    gateway, peer = await join(Role.GATEWAY), await join(Role.OPERATOR)
    name = subjects.DEAD_LETTERS.name
    made = json.dumps(subjects.DEAD_LETTERS.config()).encode()
    await gateway.client.request(f"$JS.API.STREAM.CREATE.{name}", made, timeout=30)
    await gateway.client.request("mr.dead.sim", b"a letter", timeout=30)
    asked = json.dumps({"last_by_subj": "mr.dead.sim"}).encode()
    answer = await peer.client.request(f"$JS.API.STREAM.MSG.GET.{name}", asked, timeout=30)

    assert b"a letter" == base64.b64decode(json.loads(answer.data)["message"]["data"])

    for subject in (
        *("mr.here.operator", "mr.job.sim.normal.all", "mr.dead.sim", "x", "$JS.API.STREAM.LIST"),
        *(f"$JS.API.STREAM.{verb}.{name}" for verb in ("DELETE", "PURGE", "MSG.DELETE")),
        f"$JS.API.STREAM.MSG.GET.{subjects.JOBS.name}",
    ):
        assert not await peer.may_publish(subject), subject


async def test_an_engine_cannot_settle_a_job(join: Join) -> None:
    """An engine that holds a delivery can neither acknowledge, refuse nor extend it."""
    gateway, tokenizer, engine = await join(Role.GATEWAY), await join(Role.TOKENIZER), await join(Role.ENGINE)
    for call, body in (
        (f"STREAM.CREATE.{subjects.JOBS.name}", subjects.JOBS.config()),
        (
            f"CONSUMER.CREATE.{subjects.JOBS.name}.sim.mr.job.sim.normal.all",
            {
                "stream_name": subjects.JOBS.name,
                "config": {**subjects.consumer(subjects.Lane("sim")), "name": "sim"},
            },
        ),
    ):
        answer = await gateway.client.request(f"$JS.API.{call}", json.dumps(body).encode(), timeout=30)
        assert "error" not in json.loads(answer.data)
    await tokenizer.client.request("mr.job.sim.normal.all", b"a job", timeout=30)

    inbox = engine.client.new_inbox()
    delivered = await engine.client.subscribe(inbox)
    ask = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.JOBS.name}.sim"
    await engine.client.publish(ask, b'{"batch":1,"expires":2000000000}', reply=inbox)
    job = await delivered.next_msg(timeout=30)
    for verb in (b"+ACK", b"-NAK", b"+WPI", b"+TERM"):
        assert not await engine.may(engine.client.publish(job.reply, verb)), verb

    info = await gateway.client.request(f"$JS.API.STREAM.INFO.{subjects.JOBS.name}", b"", timeout=30)
    assert json.loads(info.data)["state"]["messages"] == 1


@pytest.mark.parametrize(
    ("asker", "subject", "server_role"),
    [
        (Role.GATEWAY, "mr.tok.sim", Role.TOKENIZER),
        (Role.GATEWAY, "mr.eng.x", Role.ENGINE),
        (Role.GATEWAY, "mr.detok.x", Role.DETOKENIZER),
        (Role.ENGINE, "mr.gw.x", Role.GATEWAY),
        (Role.DETOKENIZER, "mr.gw.x", Role.GATEWAY),
    ],
)
async def test_any_number_of_requests_is_answered(
    join: Join, asker: Role, subject: str, server_role: Role
) -> None:
    """The right to respond is not used up, and goes to the asker's inboxes alone."""
    client, service = await join(asker), await join(server_role)
    replies: list[str] = []

    async def answer(msg: Msg) -> None:
        replies.append(msg.reply)
        await msg.respond(msg.data)

    assert await service.may(service.client.subscribe(subject, cb=answer))
    for number in range(300):
        got = await client.client.request(subject, b"%d" % number, timeout=30)
        assert got.data == b"%d" % number

    assert not service.refused
    assert all(reply.startswith(subjects.inbox_prefix(asker)) for reply in replies)


@pytest.mark.parametrize(
    "who",
    [
        {},
        {"user": "engine", "pass": "wrong"},
        {"user": "engine"},
        {"user": "admin", "pass": "admin"},
    ],
)
async def test_a_stranger_is_refused(server: Broker, who: dict[str, str]) -> None:
    """No name, a wrong or missing password and an unknown user do not get in."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        assert json.loads((await reader.readline()).removeprefix(b"INFO "))["auth_required"]
        writer.write(b"CONNECT %s\r\nPING\r\n" % json.dumps({"verbose": False, **who}).encode())

        assert await reader.readline() == b"-ERR 'Authorization Violation'\r\n"
        assert await reader.read() == b""
    finally:
        writer.close()
        await writer.wait_closed()


async def test_only_the_owner_can_read_the_secrets(server: Broker) -> None:
    """The configuration and each role's address are private files, and the addresses work."""
    for path in (server.config, *(server.folder / f"{role}.url" for role in Role)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for role in Role:
        bus = await Bus.connect((server.folder / f"{role}.url").read_text().strip(), role, "test")
        assert bus.up
        await bus.close()


async def test_the_server_listens_on_loopback_only_and_has_no_monitor(server: Broker) -> None:
    """One listening port, on 127.0.0.1."""
    text = server.config.read_text()

    assert f'listen: "127.0.0.1:{server.port}"' in text
    assert "http" not in text
    assert "monitor" not in server.log.read_text().lower()


async def test_nobody_else_gets_the_port_while_the_server_is_away(tmp_path: Path) -> None:
    """Between two lives of the server its port can be neither bound by others nor given to a client."""
    made = Broker.prepare(tmp_path)
    try:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", made.port))
    finally:
        made.close()


async def test_a_client_may_come_before_the_server(tmp_path: Path) -> None:
    """Connecting waits for a server that is still to start, and hears what is said after."""
    made = Broker.prepare(tmp_path)
    heard: asyncio.Queue[Here] = asyncio.Queue()

    async def hear(here: Here, _: Context) -> None:
        heard.put_nowait(here)

    early = asyncio.create_task(Bus.connect(made.url(Role.OPERATOR), Role.OPERATOR, "early"))
    late = asyncio.create_task(Bus.connect(made.url(Role.ENGINE), Role.ENGINE, "late"))
    await asyncio.sleep(0)
    try:
        with started(made):
            watcher, speaker = await asyncio.wait_for(asyncio.gather(early, late), 60)
            await watcher.listen(Inbox(subjects.PRESENCE.wildcard, Here, hear))
            await watcher.flush()
            speaker.publish(subjects.PRESENCE.to("engine"), Here("engine", "engine_1", 1, "ready"))

            assert (await asyncio.wait_for(heard.get(), 60)).id == "engine_1"
            await watcher.close()
            await speaker.close()
    finally:
        made.close()


def test_a_password_can_stay_a_variable() -> None:
    """A configuration for a container names its secrets and does not hold them."""
    text = nats_conf.render(host="0.0.0.0", port=4222, passwords={Role.ENGINE: "$ENGINE_PASSWORD"})

    assert "password: $ENGINE_PASSWORD" in text
    assert 'listen: "0.0.0.0:4222"' in text


def test_what_is_provisioned_for_a_server_elsewhere_is_kept(tmp_path: Path) -> None:
    """Run again, as before every start: the same passwords, in the server's file and the roles'."""
    provision(tmp_path, ["nats:4222"], "/data")
    first = {role: (tmp_path / role / "nats.url").read_text() for role in Role}
    provision(tmp_path, ["nats:4222"], "/data")

    assert {role: (tmp_path / role / "nats.url").read_text() for role in Role} == first
    config = (tmp_path / "nats" / "nats.conf").read_text()
    for role, url in first.items():
        assert url.startswith(f"nats://{role}:") and url.endswith("@nats:4222\n")
        assert url.split(":")[2].split("@")[0] in config
        assert (tmp_path / role / "nats.url").stat().st_mode & 0o077 == 0


def test_an_address_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match="'nats' is not an address"):
        provision(tmp_path, ["nats"], "/data")

    assert list(tmp_path.iterdir()) == []
