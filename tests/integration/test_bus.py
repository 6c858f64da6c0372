"""The bus on a real nats-server: what is poisoned, lost, refused or repeated is counted and told."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from millrace import messages as m
from millrace.bus import Bus, Inbox, NoAnswer, NoResponder
from millrace.errors import Code, Failure
from millrace.jetstream import JetStream
from millrace.pull import Delivery, Pull
from millrace.subjects import ENGINE, GATEWAY, JOBS, ORPHANS, TOKENIZER, Lane, Role, consumer
from millrace.telemetry import Context
from services.engine.jobs.roster import Roster
from services.engine.jobs.turns import Turns
from services.engine.steps.scheduler import Scheduler
from tests.kit.nats import Server

NOBODY = Context("r", "", 0)
LANE = Lane("sim")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path / "nats")
    try:
        yield await made.start()
    finally:
        made.close()


@pytest.fixture
async def join(server: Server) -> AsyncIterator[Callable[[Role], "asyncio.Future[Bus]"]]:
    joined: list[Bus] = []

    async def one(role: Role) -> Bus:
        joined.append(await server.join(role))
        return joined[-1]

    yield lambda role: asyncio.ensure_future(one(role))
    for bus in joined:
        await bus.close()


Join = Callable[[Role], "asyncio.Future[Bus]"]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def job(name: str = "gw-1", prompt: bytes = b"\1\0\0\0") -> m.Job:
    return m.Job(name, 1, prompt, m.Sampling(1), 4)


async def declared(gateway: Bus, **limits: int) -> None:
    await JetStream(gateway).declare_stream(JOBS.config(**limits))
    await JetStream(gateway).declare_consumer(JOBS.name, consumer(LANE))


NONSENSE = [b"\xc1 nonsense", b"\x92\xa2\xff\xfe\x90"]
"""The second is well formed, but its name is not UTF-8."""


@pytest.mark.parametrize("poison", NONSENSE)
@pytest.mark.parametrize("waits", [True, False])
async def test_a_poisoned_message_is_counted_and_answered(join: Join, poison: bytes, *, waits: bool) -> None:
    """Bytes that are no message of the subject end there: counted, answered, and the next one is handled."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)
    heard: list[m.Ping] = []

    async def handle(message: m.Ping, context: Context) -> m.Pong:
        heard.append(message)
        return m.Pong("e", 1, [])

    def handled(message: m.Ping, context: Context) -> m.Pong:
        heard.append(message)
        return m.Pong("e", 1, [])

    await engine.listen(Inbox(ENGINE.to("e"), m.ToEngine, handle if waits else handled))
    await engine.flush()
    answer = msgspec.msgpack.decode(await gateway.ask(ENGINE.to("e"), poison, 30.0), type=m.Refused)
    pong = await gateway.request(ENGINE.to("e"), m.Ping([]), m.Pong, 30.0)

    assert (Code.INVALID_REQUEST, 1) == (answer.code, engine.counts["poisoned"])
    assert ("e", [m.Ping([])]) == (pong.id, heard)


async def test_what_a_newer_version_says_is_not_counted_as_poison(join: Join) -> None:
    """Its kinds are counted apart, for handlers of both sorts and as an answer; what follows is handled."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)
    tomorrow = msgspec.msgpack.encode(["tomorrow", 1, {"a": 2}])
    heard: list[m.Message] = []

    async def waiting(message: m.Ping, context: Context) -> m.Message:
        return m.Pong("e", 1, [])

    def answering(subject: str, payload: bytes, reply: str, headers: Mapping[str, str]) -> None:
        engine.send(reply, tomorrow)

    await engine.listen(Inbox(ENGINE.to("e"), m.ToEngine, waiting))
    await engine.listen(Inbox(ENGINE.to("f"), m.ToEngine, lambda message, context: heard.append(message)))
    await engine.hear(ENGINE.to("g"), answering)
    await engine.flush()
    answer = msgspec.msgpack.decode(await gateway.ask(ENGINE.to("e"), tomorrow, 30.0), type=m.Refused)
    gateway.send(ENGINE.to("f"), tomorrow)
    gateway.publish(ENGINE.to("f"), m.Ping([]))
    gateway.send(ENGINE.to("f"), msgspec.msgpack.encode(["ping"]))
    with pytest.raises(NoAnswer):
        await gateway.request(ENGINE.to("g"), m.Ping([]), m.Pong, 2.0)
    await until(lambda: engine.counts["poisoned"] > 0)

    assert (Code.INVALID_REQUEST, [m.Ping([])]) == (answer.code, heard)
    assert (2, 1) == (engine.counts["unknown"], engine.counts["poisoned"])
    assert (1, 0) == (gateway.counts["unknown"], gateway.counts["poisoned"])


class Panic(BaseException):
    """As libraries that are written in Rust raise it."""


@pytest.mark.parametrize("defect", [ZeroDivisionError, Panic])
@pytest.mark.parametrize("credit", [1, 4])
async def test_a_handler_that_fails_harms_its_message_only(
    join: Join, defect: type[BaseException], credit: int
) -> None:
    """A defect is counted and answered as internal; the subscription goes on."""
    tokenizer, gateway = await join(Role.TOKENIZER), await join(Role.GATEWAY)

    async def handle(message: m.Prompt, context: Context) -> m.Message:
        if message.request == "gw-bad":
            raise defect
        return m.Admitted(message.request, 1, 1, 1)

    await tokenizer.listen(Inbox(TOKENIZER.to("sim"), m.ToTokenizer, handle, queue="q", credit=credit))
    await tokenizer.flush()
    answers = [
        await gateway.request(
            TOKENIZER.to("sim"), m.Prompt(name, 1, "sim", m.Text("x"), m.Sampling(1)), m.FromTokenizer, 30.0
        )
        for name in ("gw-bad", "gw-good")
    ]

    assert Code.INTERNAL == answers[0].code
    assert "gw-good" == answers[1].request
    assert 1 == tokenizer.counts["failed"]


async def test_a_slow_subscriber_is_seen(join: Join) -> None:
    """What nats-py drops because nobody takes it is counted."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)
    gate = asyncio.Event()

    async def handle(message: m.Release, context: Context) -> None:
        await gate.wait()

    await engine.listen(Inbox(ENGINE.to("e"), m.ToEngine, handle))
    engine._subs[0]._pending_queue._maxsize = 4  # type: ignore[attr-defined]  # instead of half a million messages
    await engine.flush()
    for _ in range(20):
        gateway.publish(ENGINE.to("e"), m.Release([]))
    await until(lambda: engine.counts["dropped"] >= 10)
    gate.set()

    assert 0 == gateway.counts["dropped"]


async def test_nobody_there_and_no_answer_differ(join: Join) -> None:
    """That nobody listens is known at once; silence takes its time."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)

    async def handle(message: m.Ping, context: Context) -> None:
        return None

    await engine.listen(Inbox(ENGINE.to("mute"), m.ToEngine, handle))
    await engine.flush()

    with pytest.raises(NoResponder):
        await gateway.request(ENGINE.to("nobody"), m.Ping([]), m.Pong, 30.0)
    with pytest.raises(NoAnswer):
        await gateway.request(ENGINE.to("mute"), m.Ping([]), m.Pong, 0.1)


async def test_a_job_asked_for_twice_is_stored_once(join: Join) -> None:
    """The same request and attempt has one place in the queue, whoever asks how often."""
    gateway, tokenizer = await join(Role.GATEWAY), await join(Role.TOKENIZER)
    await declared(gateway)

    first = await JetStream(tokenizer).store(LANE.subject, job(), "gw-1:1", 30.0, NOBODY)
    again = await JetStream(tokenizer).store(LANE.subject, job(), "gw-1:1", 30.0, NOBODY)
    other = await JetStream(tokenizer).store(LANE.subject, job(), "gw-1:2", 30.0, NOBODY)

    assert (first, first + 1) == (again, other)


async def test_a_full_queue_and_a_missing_one_are_told_apart(join: Join) -> None:
    """Full is 429 to the client, absent is 503, too large is 413."""
    gateway, tokenizer = await join(Role.GATEWAY), await join(Role.TOKENIZER)

    with pytest.raises(Failure) as missing:
        await JetStream(tokenizer).store(LANE.subject, job(), "gw-0:1", 30.0, NOBODY)
    await declared(gateway, max_msgs=2)
    for i in range(2):
        await JetStream(tokenizer).store(LANE.subject, job(f"gw-{i}"), f"gw-{i}:1", 30.0, NOBODY)
    with pytest.raises(Failure) as full:
        await JetStream(tokenizer).store(LANE.subject, job("gw-2"), "gw-2:1", 30.0, NOBODY)
    with pytest.raises(Failure) as large:
        huge = job("gw-3", b"\0" * (JOBS.max_msg_size + 1))
        await JetStream(tokenizer).store(LANE.subject, huge, "gw-3:1", 30.0, NOBODY)

    assert Code.UNAVAILABLE == missing.value.code
    assert Code.QUEUE_FULL == full.value.code
    assert Code.BODY_TOO_LARGE == large.value.code


async def test_a_pull_takes_what_there_is_room_for(join: Join) -> None:
    """An engine gets no more jobs than it asked for; the rest wait for others."""
    gateway, tokenizer, engine = [await join(r) for r in (Role.GATEWAY, Role.TOKENIZER, Role.ENGINE)]
    await declared(gateway)
    got: list[Delivery] = []

    for i in range(5):
        await JetStream(tokenizer).store(
            LANE.subject, job(f"gw-{i}"), f"gw-{i}:1", 30.0, Context(f"gw-{i}", "", 9)
        )
    pull = Pull(engine, "sim", lambda: 3 - len(got), got.append)
    await pull.start()
    await until(lambda: len(got) == 3)
    await asyncio.sleep(0.5)  # two more rounds of asking
    await pull.stop()

    assert ["gw-0", "gw-1", "gw-2"] == [d.job.request for d in got]
    assert ("gw-0", 9, 1) == (got[0].context.request, got[0].context.left_ms, got[0].delivery)


@pytest.mark.parametrize("poison", [NONSENSE[0], m.encode(job()).replace(b"gw-1", b"gw-\xff")])
async def test_a_poisoned_job_is_told_of_and_the_next_one_comes(join: Join, poison: bytes) -> None:
    """Whatever its bytes are: nobody owns it, so all gateways hear of it."""
    gateway, tokenizer, engine = [await join(r) for r in (Role.GATEWAY, Role.TOKENIZER, Role.ENGINE)]
    await declared(gateway)
    got: list[Delivery] = []
    told: list[m.Message] = []

    await gateway.listen(Inbox(ORPHANS.pattern, m.Orphan, lambda message, context: told.append(message)))
    await gateway.flush()
    await tokenizer.ask(LANE.subject, poison, 30.0)
    await JetStream(tokenizer).store(LANE.subject, job(), "gw-1:1", 30.0, NOBODY)
    pull = Pull(engine, "sim", lambda: 4, got.append)
    await pull.start()
    await until(lambda: bool(got and told))
    await pull.stop()

    assert "gw-1" == got[0].job.request
    assert (1, 0) == (engine.counts["poisoned"], engine.counts["reconnects"])


async def test_a_newer_version_s_job_is_left_to_it(join: Join) -> None:
    """Nobody is told of it as an orphan, its tenant's other jobs come, and so does it, again and again."""
    gateway, tokenizer, engine = [await join(r) for r in (Role.GATEWAY, Role.TOKENIZER, Role.ENGINE)]
    await declared(gateway)
    lane = Lane("sim", "acme")
    await JetStream(gateway).declare_consumer(JOBS.name, consumer(lane))
    got: list[Delivery] = []
    told: list[m.Message] = []
    turns = Turns("sim", 1, Roster("e", 1, Scheduler(1, 64), 0.0), lambda: 1)

    await gateway.listen(Inbox(ORPHANS.pattern, m.Orphan, lambda message, context: told.append(message)))
    await gateway.flush()
    await tokenizer.ask(lane.subject, msgspec.msgpack.encode(["tomorrowsjob", "gw-0", {"a": 2}]), 30.0)
    await JetStream(tokenizer).store(lane.subject, job(), "gw-1:1", 30.0, NOBODY)

    def taken(delivery: Delivery) -> None:
        got.append(delivery)
        JetStream(gateway).settle(delivery.lease, "+ACK")
        turns.took(delivery.lane, delivery.job.request, 1, 4, 0.0, more=delivery.more)

    pull = Pull(engine, "sim", lambda: 0, taken, turns)
    await pull.start()

    def enough() -> bool:
        turns.bell([m.Waiting("acme", "normal", 1.0, 1.0)])
        pull.wake()
        return bool(got) and engine.counts["unknown"] > 1

    await until(enough)
    await pull.stop()
    await engine.flush()
    await gateway.flush()

    assert "gw-1" == got[0].job.request
    assert ([], 0) == (told, engine.counts["poisoned"])


async def test_a_settled_job_is_gone_and_a_refused_one_comes_back(join: Join) -> None:
    """The owner alone settles: an ack frees the place, a nak has the job delivered again at once."""
    gateway, tokenizer, engine = [await join(r) for r in (Role.GATEWAY, Role.TOKENIZER, Role.ENGINE)]
    await declared(gateway)
    got: list[Delivery] = []

    seq = await JetStream(tokenizer).store(LANE.subject, job(), "gw-1:1", 30.0, NOBODY)
    pull = Pull(engine, "sim", lambda: 4, got.append)
    await pull.start()
    await until(lambda: len(got) == 1)
    JetStream(gateway).settle(got[0].lease, "-NAK")
    await until(lambda: len(got) == 2)
    there = await JetStream(gateway).stored(seq)
    JetStream(gateway).settle(got[0].lease, "+ACK")  # the first delivery's subject still settles it

    async with asyncio.timeout(60):
        while await JetStream(gateway).stored(seq):
            await asyncio.sleep(0.01)
    await pull.stop()

    assert (True, 2) == (there, got[1].delivery)


async def test_nothing_is_kept_for_a_server_that_is_away(server: Server, join: Join) -> None:
    """While NATS is down a publish says so, a request fails at once, and nothing is sent late."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)
    heard: list[m.Message] = []

    async def handle(message: m.Release, context: Context) -> None:
        heard.append(message)

    await engine.listen(Inbox(ENGINE.to("e"), m.ToEngine, handle))
    await engine.flush()
    server.kill()
    await until(lambda: not gateway.up and not engine.up)
    sent = gateway.publish(ENGINE.to("e"), m.Release([m.Ref("ghost", 1)]))
    with pytest.raises(NoAnswer):
        await gateway.request(ENGINE.to("e"), m.Ping([]), m.Pong, 30.0)
    await server.start()
    await until(lambda: gateway.up and engine.up)
    await engine.flush()
    gateway.publish(ENGINE.to("e"), m.Release([m.Ref("real", 1)]))
    await until(lambda: bool(heard))

    assert not sent
    assert [m.Release([m.Ref("real", 1)])] == heard


async def test_a_question_under_way_ends_with_the_connection(server: Server, join: Join) -> None:
    """Its answer is lost with it: who asks again at once is served as soon as NATS is back."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)
    heard: list[m.Message] = []
    await engine.listen(Inbox(ENGINE.to("e"), m.ToEngine, lambda message, context: heard.append(message)))
    await engine.flush()
    asked = asyncio.ensure_future(gateway.request(ENGINE.to("e"), m.Ping([]), m.Pong, 300.0))
    await until(lambda: bool(heard))
    server.kill()

    async with asyncio.timeout(30):
        with pytest.raises(NoAnswer):
            await asked


async def test_what_is_said_together_comes_in_order(join: Join) -> None:
    """It waits for the end of the block, and what a block within said waits with it."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)
    heard: list[str] = []
    await engine.listen(
        Inbox(ENGINE.to("e"), m.Release, lambda message, context: heard.append(message.refs[0].request))
    )
    await engine.flush()
    with gateway.together:
        for name in "ab":
            gateway.publish(ENGINE.to("e"), m.Release([m.Ref(name, 1)]))
        with gateway.together:
            gateway.publish(ENGINE.to("e"), m.Release([m.Ref("c", 1)]))
        await asyncio.sleep(0.05)
        before = list(heard)
    gateway.publish(ENGINE.to("e"), m.Release([m.Ref("d", 1)]))
    await until(lambda: len(heard) == 4)

    assert ([], list("abcd")) == (before, heard)


async def test_answers_find_back_after_the_server_was_away(server: Server, join: Join) -> None:
    """Where they are to go is known to the next server too, and an answer that comes too late is nobody's."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)

    async def handle(message: m.Ping, context: Context) -> m.Pong:
        await asyncio.sleep(0.2 if message.refs else 0)
        return m.Pong(f"{len(message.refs)}", 1, [])

    await engine.listen(Inbox(ENGINE.to("e"), m.ToEngine, handle))
    await engine.flush()
    server.kill()
    await until(lambda: not gateway.up and not engine.up)
    await server.start()
    await until(lambda: gateway.up and engine.up)
    await engine.flush()
    with pytest.raises(NoAnswer):
        await gateway.request(ENGINE.to("e"), m.Ping([m.Ref("r", 1)]), m.Pong, 0.05)
    pong = await gateway.request(ENGINE.to("e"), m.Ping([]), m.Pong, 30.0)

    assert "0" == pong.id


async def test_a_question_on_its_way_is_answered_while_its_asker_closes(join: Join) -> None:
    """What was taken is finished, and that may need an answer."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)

    async def handle(message: m.Ping, context: Context) -> m.Pong:
        await asyncio.sleep(0.1)
        return m.Pong("e", 1, [])

    async def work(message: m.Release, context: Context) -> None:
        told.set_result(await gateway.request(ENGINE.to("e"), m.Ping([]), m.Pong, 30.0))

    told: asyncio.Future[m.Pong] = asyncio.get_running_loop().create_future()
    await engine.listen(Inbox(ENGINE.to("e"), m.ToEngine, handle))
    await gateway.listen(Inbox(GATEWAY.to("g"), m.Release, work, credit=2))
    await engine.flush()
    await gateway.flush()
    engine.publish(GATEWAY.to("g"), m.Release([]))
    await until(lambda: bool(gateway._tasks))
    await gateway.close()

    assert "e" == told.result().id


async def test_a_header_cannot_smuggle_a_line(join: Join) -> None:
    """Whatever its value holds, it is one value."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)
    heard: list[Context] = []

    async def handle(message: m.Ping, context: Context) -> m.Pong:
        heard.append(context)
        return m.Pong("e", 1, [])

    await engine.listen(Inbox(ENGINE.to("e"), m.ToEngine, handle))
    await engine.flush()
    context = Context("gw-1\r\nMr-Left-Ms: 5\r\n\r\n", "", 7)
    await gateway.request(ENGINE.to("e"), m.Ping([]), m.Pong, 30.0, context)

    assert [7] == [context.left_ms for context in heard]
    assert heard[0].request.startswith("gw-1 ")


async def test_wrong_credentials_are_told_at_once(server: Server) -> None:
    """A process with the wrong password does not retry for ever."""
    url = server.broker.url(Role.ENGINE).replace("engine:", "engine:x")

    with pytest.raises(PermissionError, match="engine"):
        await asyncio.wait_for(Bus.connect(url, Role.ENGINE, "e"), 60)


async def test_a_lease_cannot_smuggle_a_command(join: Join) -> None:
    """A subject that came in a message is a subject, whatever it holds."""
    engine, gateway = await join(Role.ENGINE), await join(Role.GATEWAY)
    heard: list[m.Message] = []
    await engine.listen(Inbox(ENGINE.to("e"), m.ToEngine, lambda message, context: heard.append(message)))
    await engine.flush()
    real = m.Release([m.Ref("real", 1)])
    ghost = m.encode(m.Release([m.Ref("ghost", 1)]))
    JetStream(gateway).settle(
        f"x 0\r\n\r\nPUB {ENGINE.to('e')} {len(ghost)}\r\n{ghost.decode('latin-1')}\r\nPUB x", "+ACK"
    )
    JetStream(gateway).settle("", "+ACK")
    gateway.publish(ENGINE.to("e"), real)
    await until(lambda: bool(heard))

    assert [real] == heard
    assert gateway.up


async def test_a_flush_that_is_given_up_harms_nothing(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    """Its pong comes all the same, and is no trouble: the connection stays, and takes the next one."""
    bus = await join(Role.ENGINE)
    for turns in range(10):
        flushing = asyncio.ensure_future(bus.flush())
        for _ in range(turns):
            await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.wait({flushing})
    await bus.flush()

    assert ([], 0, True) == (caplog.messages, bus.counts["reconnects"], bus.up)


async def test_a_server_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for, but not without a word, and not with the password in it."""
    monkeypatch.setattr("millrace.bus.QUIET_S", 0.05)
    connecting = asyncio.ensure_future(Bus.connect("nats://engine:secret@127.0.0.1:1", Role.ENGINE, "e"))
    await until(lambda: bool(caplog.messages))
    connecting.cancel()
    await asyncio.wait({connecting})

    assert ["no NATS answers at nats://127.0.0.1:1 yet: it is waited for"] == caplog.messages


async def test_who_is_stopped_while_it_connects_leaves_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A service that is ended while it starts has no troubles to tell of."""
    greeted = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"s","version":"2","max_payload":1024}\r\n')
        await reader.readline()
        greeted.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(60):
        connecting = asyncio.ensure_future(Bus.connect(f"nats://127.0.0.1:{port}", Role.ENGINE, "e"))
        await greeted.wait()
        connecting.cancel()
        await asyncio.wait({connecting})
    server.close()

    assert (True, []) == (connecting.cancelled(), caplog.messages)
