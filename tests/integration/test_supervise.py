"""`millrace up` and the commands that talk to it, as their user meets them: real processes throughout."""

import asyncio
import contextlib
import json
import os
import re
import signal
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from millrace.bus import Bus
from millrace.messages import Here
from millrace.subjects import PRESENCE, Role
from millrace.up import place
from millrace.up.child import LOG_LIMIT
from millrace.up.seat import backoff
from millrace.up.supervise import ends
from tests.kit.command import FAST, LIMIT_S, ROLES, Up, all_gone, call, launch, watched
from tests.kit.service import environment

Start = Callable[..., Any]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start services; at the end each must be gone, or is killed."""
    running: list[Up] = []

    async def begin(*args: object, name: str = "state", env: Mapping[str, str] = FAST) -> Up:
        full = environment({"XDG_STATE_HOME": str(tmp_path / "home"), **env})
        folder = tmp_path / name
        flags = ("--plain", "--model", "sim", "--port", 0, "--state-dir", folder)
        up = Up(await launch("up", *flags, *args, env=full), folder, full)
        running.append(up)
        up.url = (await up.says("ready: http")).removeprefix("ready: ")
        return up

    yield begin
    for up in running:
        if up.process.returncode is None:
            up.process.kill()
        # Reading to the end also sees that nobody it left behind holds its output.
        await asyncio.wait_for(up.process.communicate(), LIMIT_S)


def test_the_first_death_is_followed_at_once_and_a_series_ever_later() -> None:
    """0, then 0.1 s doubled each time, and never more than 10 s."""
    pauses = [backoff(deaths) for deaths in range(1, 12)]

    assert pauses == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    assert backoff(10**6) == 10


@pytest.mark.parametrize("taken", [signal.SIG_DFL, signal.SIG_IGN])
def test_whom_nohup_started_does_not_hear_the_terminal_go(taken: signal.Handlers) -> None:
    """Its hang-up stays ignored, and is not taken for an order to stop."""
    before = signal.signal(signal.SIGHUP, taken)
    try:
        assert (signal.SIGHUP in ends()) == (taken == signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_one_command_runs_a_service_and_one_signal_ends_all_of_it(start: Start, tmp_path: Path) -> None:
    """Every part is ready when it says so, it answers, and SIGTERM leaves nothing running. Its own log has a
    limit as theirs have."""
    log = tmp_path / "state" / "log" / "up.log"
    log.parent.mkdir(parents=True)
    log.touch()
    os.truncate(log, LOG_LIMIT)
    up = await start()
    assert LOG_LIMIT == log.with_name("up.log.1").stat().st_size
    assert "engine ready" in re.sub("engine_[0-9a-f]+ ", "", log.read_text())
    rows = await up.ps()
    pidfds = watched(row["pid"] for row in rows)

    assert [row["role"] for row in rows] == list(ROLES)
    assert all(row["state"] == "ready" and row["restarts"] == 0 for row in rows)
    keys = {"role", "pid", "id", "state", "load", "room", "restarts", "model", "pressure"}
    assert all(set(row) == keys for row in rows)
    assert [row["model"] for row in rows if row["role"] == "engine"] == ["sim"]
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{up.url}/v1/models")).status_code == 200
    assert await up.stop() == 0
    assert await all_gone(pidfds)
    assert not (up.folder / "control.sock").exists()


@pytest.mark.parametrize("role", ROLES)
async def test_a_killed_process_is_followed_by_another(start: Start, role: str) -> None:
    """Another one is ready soon, the loss is shown and counted, and nobody else is touched."""
    up = await start()
    before = await up.pids()
    os.kill(before[role][0], signal.SIGKILL)
    await up.says(role, "died (SIGKILL), starting another")
    await up.says(f"{role} ", "ready")
    after = await up.pids()

    assert [r for r in ROLES if before[r] != after[r]] == [role]
    assert [row["restarts"] for row in await up.ps()] == [int(r == role) for r in ROLES]
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{up.url}/v1/models")).status_code == 200
    assert await up.stop() == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
async def test_who_pass_tokens_on_share_a_processor_and_so_does_who_follows_one(start: Start) -> None:
    """nats-server, gateway and detokenizer, every thread of them; engines have all."""

    def where(pid: int) -> set[frozenset[int]]:
        places = set()
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                places.add(frozenset(os.sched_getaffinity(int(thread.name))))
        return places

    async def shared(up: Up) -> dict[str, list[int]]:
        async with asyncio.timeout(LIMIT_S):
            while True:
                pids = await up.pids()
                passing = [pid for role in ("nats", "gateway", "detokenizer") for pid in pids[role]]
                places = set[frozenset[int]]().union(*map(where, passing)) if all(passing) else set()
                if len(places) == 1 and all(len(place) == 1 for place in places):
                    return pids
                await asyncio.sleep(0.2)

    up = await start()

    pids = await shared(up)
    assert where(pids["engine"][0]) == {frozenset(os.sched_getaffinity(0))}

    os.kill(pids["detokenizer"][0], signal.SIGKILL)
    await up.says("detokenizer", "ready")
    assert (await shared(up))["detokenizer"] != pids["detokenizer"]
    assert await up.stop() == 0


async def test_a_state_directory_that_is_removed_is_made_again(start: Start) -> None:
    """It is said, `ps` finds the service again, nobody else can take the directory, and who dies then comes
    back: nats-server with the same passwords, for those who run on. If its lock alone is removed, the service
    that answers there keeps others out until there is one again."""
    up = await start()
    pids = await up.pids()
    up.folder.rename(up.folder.with_name("gone"))
    await up.says("was removed, and is made again")
    assert pids == await up.pids()
    with pytest.raises(place.CannotStart, match=f"is in use by another .* \\(pid {up.process.pid}\\)"):
        place.claim(up.folder)
    body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    for role in ("nats", "engine"):
        os.kill(pids[role][0], signal.SIGKILL)
        await up.says(f"{role} ", "ready")
    async with httpx.AsyncClient(timeout=LIMIT_S) as client, asyncio.timeout(LIMIT_S):
        while (await client.post(f"{up.url}/v1/chat/completions", json=body)).status_code != 200:
            await asyncio.sleep(0.1)

    up.process.send_signal(signal.SIGSTOP)
    (up.folder / "lock").unlink()
    status, _, complaint = await up.order("up", "--model", "sim", "--port", 0)
    up.process.send_signal(signal.SIGCONT)
    await up.says("its lock was removed, and is made again")
    with pytest.raises(place.CannotStart, match=f"\\(pid {up.process.pid}\\)"):
        place.claim(up.folder)

    assert status == 1 and "in use by another `millrace up`, whose lock somebody has removed" in complaint
    assert [0o700] * 3 == [stat.S_IMODE((up.folder / each).stat().st_mode) for each in (".", "log", "nats")]
    assert await up.stop() == 0


async def test_a_paused_nats_server_is_said_not_to_answer(start: Start) -> None:
    """And nobody else is blamed for what cannot be heard; when it goes on, so does everything."""
    up = await start()
    nats = (await up.pids())["nats"][0]

    async def until_silent(*names: str) -> None:
        async with asyncio.timeout(2 * LIMIT_S):
            while [row["role"] for row in await up.ps() if row["state"] != "ready"] != [*names]:
                pass

    os.kill(nats, signal.SIGSTOP)
    await until_silent("nats")
    table = (await up.order("ps"))[1]
    os.kill(nats, signal.SIGCONT)
    await until_silent()

    assert [line.split()[0] for line in table.splitlines() if " silent " in line] == ["nats"]
    assert await up.stop() == 0


async def test_nothing_outlives_a_killed_supervisor(start: Start) -> None:
    """`kill -9` of `millrace up` ends every process it started, and its place can be taken at once."""
    up = await start()
    pidfds = watched(row["pid"] for row in await up.ps())
    up.process.kill()

    assert await all_gone(pidfds)
    again = await start()
    assert await again.stop() == 0


async def test_more_and_fewer_engines(start: Start) -> None:
    """`scale` is done when the new ones are ready or the surplus is gone; the older ones stay."""
    up = await start()
    first = (await up.pids())["engine"]
    status, out, _ = await up.order("scale", "engine=3")
    grown = await up.pids()
    surplus = watched(pid for pid in grown["engine"] if pid not in first)

    assert status == 0
    assert out.count(": ready\n") == 2
    assert len(grown["engine"]) == 3
    assert all(row["state"] == "ready" for row in await up.ps())
    assert (await up.order("scale", "engine=1"))[0] == 0
    assert (await up.pids())["engine"] == first
    assert await all_gone(surplus)
    assert await up.stop() == 0


async def test_a_rolling_restart_refuses_no_connection(start: Start) -> None:
    """Every process is another one afterwards, and each new connection meanwhile was answered."""
    up = await start()
    before = await up.pids()
    restarting = asyncio.create_task(up.order("restart"))
    answers = []
    while not restarting.done():
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:  # a connection of its own each time
            answers.append((await client.get(f"{up.url}/v1/models")).status_code)
    status, out, err = await restarting
    after = await up.pids()

    assert (status, err) == (0, "")
    assert "nats: ready" in out
    assert all(set(before[role]).isdisjoint(after[role]) for role in ROLES)
    assert [len(after[role]) for role in ROLES] == [1] * 5
    assert all(row["restarts"] == 0 for row in await up.ps())  # asked for, so not counted
    assert set(answers) == {200}
    assert await up.stop() == 0


async def test_only_the_named_role_is_restarted(start: Start) -> None:
    """`restart engine` leaves the other roles alone."""
    up = await start("--engines", 2)
    before = await up.pids()
    assert (await up.order("restart", "engine"))[0] == 0
    after = await up.pids()

    assert [role for role in ROLES if before[role] != after[role]] == ["engine"]
    assert len(after["engine"]) == 2
    assert set(before["engine"]).isdisjoint(after["engine"])
    assert await up.stop() == 0


async def test_one_order_waits_for_another_and_says_so(start: Start) -> None:
    """Both are carried out, and neither is silent."""
    up = await start()
    before = await up.pids()
    os.kill(before["engine"][0], signal.SIGSTOP)  # the order is not done before it is let run
    first, second = [
        await launch("restart", role, "--state-dir", up.folder, env=up.env)
        for role in ("engine", "tokenizer")
    ]
    assert first.stdout and second.stdout
    async with asyncio.timeout(LIMIT_S):
        said = [await first.stdout.readline(), await second.stdout.readline()]
    os.kill(before["engine"][0], signal.SIGCONT)
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(first.communicate(), second.communicate())
    after = await up.pids()

    assert [0, 0] == [first.returncode, second.returncode]
    assert 1 == sum(b"waits for its turn" in line for line in said)
    assert ["tokenizer", "engine"] == [role for role in ROLES if before[role] != after[role]]
    assert await up.stop() == 0


async def test_a_stream_ends_well_while_the_service_is_being_stopped(start: Start) -> None:
    """SIGTERM lets a stream come to its end, and then ends everything."""
    up = await start(env={"MILLRACE_SIM_EOS": "0", "MILLRACE_SIM_STEP_MS": "10"})
    body = {"model": "sim", "prompt": "hello", "max_tokens": 150, "stream": True}
    events: list[str] = []
    async with (
        httpx.AsyncClient(timeout=LIMIT_S) as client,
        client.stream("POST", f"{up.url}/v1/completions", json=body) as response,
    ):
        async for line in response.aiter_lines():
            if not events:
                up.process.send_signal(signal.SIGTERM)
            events.append(line)

    said = [line for line in events if line.startswith("data: ")]
    assert said[-1] == "data: [DONE]"
    assert json.loads(said[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert await up.ended() == 0


async def test_a_second_signal_ends_everything_at_once(start: Start) -> None:
    """Whoever cannot wait for the streams says so again."""
    up = await start(env={"MILLRACE_SIM_EOS": "0", "MILLRACE_SIM_STEP_MS": "1000"})
    pidfds = watched(row["pid"] for row in await up.ps())
    body = {"model": "sim", "prompt": "hello", "max_tokens": 1000, "stream": True}
    with pytest.raises(httpx.TransportError):
        async with (
            httpx.AsyncClient(timeout=LIMIT_S) as client,
            client.stream("POST", f"{up.url}/v1/completions", json=body) as response,
        ):
            assert response.status_code == 200
            up.process.send_signal(signal.SIGINT)
            await up.says("stopping: streams may go on for 30 s")
            up.process.send_signal(signal.SIGINT)
            await response.aread()

    assert await up.ended() == 0
    assert await all_gone(pidfds)


async def test_the_state_directory_has_one_owner(start: Start) -> None:
    """A second `up` there is refused, with the directory and the pid of the first."""
    up = await start()
    status, _, err = await call("up", "--port", 0, "--state-dir", up.folder, env=up.env)

    assert status == 1
    assert str(up.folder) in err
    assert f"pid {up.process.pid}" in err
    assert err.count("\n") == 1
    assert await up.stop() == 0


async def test_what_keeps_dying_says_why_and_comes_back(start: Start) -> None:
    """Its last line is shown each time, and once the cause is gone the service is whole again."""
    up = await start()
    config = up.folder / "nats" / "nats.conf"
    good = config.read_text()
    config.write_text(good + "\nno such setting {")
    os.kill((await up.pids())["nats"][0], signal.SIGKILL)
    await up.says("nats died (exit 1:", "Parse error", "again in")
    config.write_text(good)
    await up.says("nats ready")

    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        assert (await client.get(f"{up.url}/v1/models")).status_code == 200
    assert await up.stop() == 0


async def test_services_find_each_other_only_by_name(start: Start) -> None:
    """One running service needs no name; of two, one must be said, and each keeps to itself."""
    one = await start(name="home/millrace/one")
    status, out, _ = await call("ps", env=one.env)
    assert status == 0
    assert out.splitlines()[0].split() == ["ROLE", "PID", "ID", "STATE", "LOAD", "RESTARTS", "MODEL"]
    assert len(out.splitlines()) == 6

    two = await start(name="home/millrace/two")
    status, _, err = await call("ps", env=one.env)
    assert status == 1
    assert f"--state-dir {one.folder}" in err
    assert f"--state-dir {two.folder}" in err

    kept = await one.pids()
    assert await two.stop() == 0
    assert await one.pids() == kept
    assert await one.stop() == 0
    status, _, err = await call("ps", env=one.env)
    assert (status, err.startswith("millrace: no service is running")) == (1, True)


async def test_a_long_path_and_private_files(start: Start) -> None:
    """A path longer than a socket's may be works, and nobody else may read or command the service."""
    up = await start(name="/".join(["a-long-name-for-a-directory"] * 6))

    assert len(await up.ps()) == 5
    assert stat.S_IMODE((up.folder / "control.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(up.folder.stat().st_mode) == 0o700
    assert await up.stop() == 0


async def test_a_process_may_join_by_hand(start: Start) -> None:
    """A role's address file is all that another engine needs; `ps` lists it while it is there."""
    up = await start()
    url = (up.folder / "nats" / "engine.url").read_text().strip()
    env = {**up.env, "MILLRACE_NATS": url, "MILLRACE_MODEL": "sim"}
    engine = await launch("engine", "--id", "engine_guest", env=env)
    await up.says("engine engine_guest joined from outside")
    guest = [row for row in await up.ps() if row["id"] == "engine_guest"]

    assert [(row["role"], row["pid"], row["model"]) for row in guest] == [("engine", engine.pid, "sim")]
    engine.send_signal(signal.SIGTERM)
    await engine.communicate()
    await up.says("engine engine_guest left")
    assert await up.stop() == 0


async def test_what_a_process_said_last_makes_no_guest_of_it(start: Start) -> None:
    """It may be heard after its end, which its parent knows of at once."""
    up = await start()
    (engine,) = [row for row in await up.ps() if row["role"] == "engine"]
    os.kill(engine["pid"], signal.SIGKILL)
    await up.says("engine", "died (SIGKILL), starting another")
    url = (up.folder / "nats" / "engine.url").read_text().strip()
    bus = await Bus.connect(url, Role.ENGINE, "test")
    for id in (engine["id"], "engine_guest"):
        bus.publish(PRESENCE.to(Role.ENGINE), Here(Role.ENGINE, id, engine["pid"], "ready", 0, 0))
    await up.says("engine engine_guest joined from outside")
    await bus.close()

    assert engine["id"] not in [row["id"] for row in await up.ps()]
    assert await up.stop() == 0


@pytest.mark.parametrize(
    ("order", "named"),
    [
        (("scale", "nats=2"), "nats"),
        (("scale", "engine=1000"), "engine=1000"),
        (("restart", "wheel"), "wheel"),
    ],
)
async def test_an_order_that_makes_no_sense_changes_nothing(
    start: Start, order: tuple[str, ...], named: str
) -> None:
    """It is refused by name."""
    up = await start()
    before = await up.pids()
    status, _, err = await up.order(*order)

    assert status == 1
    assert named in err
    assert await up.pids() == before
    assert await up.stop() == 0


async def test_a_replacement_that_does_not_start_leaves_the_old_one(start: Start) -> None:
    """`restart` ends with the reason, and the service serves on as before."""
    up = await start()
    before = await up.pids()
    log = up.folder / "log" / "engine_2.log"
    log.mkdir()  # the replacement's log cannot be opened, so it cannot be started
    status, _, err = await up.order("restart", "engine")

    assert status == 1
    assert "the engine does not start" in err
    assert await up.pids() == before
    log.rmdir()
    assert (await up.order("restart", "engine"))[0] == 0
    assert await up.stop() == 0
