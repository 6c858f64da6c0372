"""Tenants in the whole service: each has its own part of the queue and its turns, and loses no stream."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from millrace import keys
from millrace.bus import Bus, NoAnswer
from millrace.errors import Code, Failure
from millrace.messages import Find, Found, Gone
from millrace.subjects import FIND, Role
from services.gateway.search import search
from tests.kit.service import Service

HELLO: Any = [{"role": "user", "content": "Hello there, how are you?"}]
NAMES = ("acme", "lab", "Ünïcode & more")
KEYS = {name: keys.new(name) for name in NAMES}
PLACES = 6
SLOTS = 4
"""Of two engines."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file: Path = tmp_path_factory.mktemp("keys") / "keys.toml"
    lines = "\n".join(line for _, line in KEYS.values())
    # Acme's share is whole, or it would not fill the slots until the others have been away for ten seconds.
    file.write_text(f'[keys]\n{lines}\n[tenants.acme]\nshare = 1.0\n[tenants.lab]\npriority = "high"\n')
    env = {
        "MILLRACE_KEYS": str(file),
        "MILLRACE_TENANT_QUEUE": str(PLACES),
        "MILLRACE_QUEUE": str(PLACES),
        "MILLRACE_SLOTS": str(SLOTS // 2),
        "MILLRACE_SIM_STEP_MS": "4",
    }
    made = asyncio.run(Service.start(env=env, engines=2, gateways=2))
    yield made
    asyncio.run(made.stop())


@pytest.fixture
async def clients(service: Service) -> AsyncIterator[dict[str, AsyncOpenAI]]:
    made = {
        name: AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=60)
        for name, (key, _) in KEYS.items()
    }
    yield made
    for client in made.values():
        await client.close()


async def text(client: AsyncOpenAI, seed: int, tokens: int) -> str:
    stream = await client.chat.completions.create(
        model="sim",
        messages=HELLO,
        seed=seed,
        max_tokens=tokens,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_a_seed_says_the_same_for_all(clients: dict[str, AsyncOpenAI]) -> None:
    """Whose key it is changes who waits, not what is said."""
    said = [await text(client, 7, 20) for client in clients.values()]

    assert [said[0]] * 3 == said


async def test_what_one_tenant_said_is_known_to_no_other(clients: dict[str, AsyncOpenAI]) -> None:
    """What an engine has computed for one tenant it computes again for the next, and says the same."""
    secret = "The vault opens with four, nine, one, one, seven, three, and then the name of her dog, twice."

    async def ask(name: str) -> tuple[str, int]:
        made = await clients[name].completions.create(model="sim", prompt=secret, seed=3, max_tokens=9)
        assert made.usage is not None and made.usage.prompt_tokens_details is not None
        return made.choices[0].text, made.usage.prompt_tokens_details.cached_tokens or 0

    hers = [await ask("acme") for _ in range(3)]  # there are two engines
    his = await ask("lab")
    again = [await ask("lab") for _ in range(2)]

    assert hers[0][1] == 0 < hers[2][1] + hers[1][1]
    assert (hers[0][0], 0) == his
    assert 0 < again[0][1] + again[1][1]


LONG: Any = {
    "model": "sim",
    "messages": HELLO,
    "max_tokens": 3500,
    "stream": True,
    "extra_body": {"ignore_eos": True},
}


class Held:
    """All places of a tenant, taken by answers that go on until they are let go."""

    def __init__(self, service: Service, client: AsyncOpenAI):
        self._http = httpx.AsyncClient(base_url=f"{service.url}/v1/requests", headers=client.auth_headers)
        self._client = client
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[str]] = []
        self.queued: dict[str, int] = {}  # position by id

    async def __aenter__(self) -> "Held":
        ids = [f"waits-{n}" for n in range(PLACES)]
        self._tasks = [asyncio.create_task(self._hold(id)) for id in ids]
        async with asyncio.timeout(60):
            while True:
                answers = await asyncio.gather(*(self._http.get(f"/{id}") for id in ids))
                told = {id: answer.json() for id, answer in zip(ids, answers, strict=True)}
                self.queued = {id: each["position"] for id, each in told.items() if each.get("position")}
                running = sum(each.get("tokens", 0) > 0 for each in told.values())
                if (SLOTS, PLACES - SLOTS) == (running, len(self.queued)):
                    return self
                await asyncio.sleep(0.05)

    async def _hold(self, id: str) -> str:
        """How it ended."""
        while True:
            try:
                stream = await self._client.chat.completions.create(
                    **LONG, extra_headers={"x-request-id": id}
                )
            except openai.RateLimitError:  # somebody's place is not free yet
                await asyncio.sleep(0.1)
            except openai.APIStatusError as error:
                return f"{error.code}"
            else:
                await self._over.wait()
                await stream.close()
                return "held"

    async def cancel(self, id: str) -> int:
        return (await self._http.delete(f"/{id}")).status_code

    async def ended(self) -> Counter[str]:
        self._over.set()
        return Counter(await asyncio.gather(*self._tasks))

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()


async def test_a_flood_is_refused_to_itself(service: Service, clients: dict[str, AsyncOpenAI]) -> None:
    """A tenant has its places and no more; the others' requests are taken all the while, and go through."""

    async def refused(seed: int) -> str:
        with pytest.raises(openai.RateLimitError) as caught:
            await text(clients["acme"], seed, 60)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        return f"{caught.value.code}"

    async with Held(service, clients["acme"]) as held:
        others = [
            asyncio.create_task(text(clients[name], seed, 60)) for name in NAMES[1:] for seed in range(PLACES)
        ]
        flood = await asyncio.gather(*(refused(seed) for seed in range(30 - PLACES)))
        ended = await held.ended()
        told = await asyncio.gather(*others)

    assert ["queue_full"] * (30 - PLACES) == flood
    assert {"held": PLACES} == ended
    assert all(told)


async def test_what_no_gateway_has_is_told_by_all_of_them(service: Service) -> None:
    """Nobody waits for more: the time that a silent one would be given is as good as endless here. A silent
    one is waited for, and may have it; an older version asks for no such word, and gets none."""
    url = (service.folder / "nats" / "gateway.url").read_text().strip()
    gateways = [row.id for row in await service.rows("gateway")]
    bus = await Bus.connect(url, Role.GATEWAY, "asks")
    wanted = Find("no-such", "acme")
    try:
        async with asyncio.timeout(60):
            assert await search(bus, wanted, gateways, 3600.0) is None
        with pytest.raises(Failure) as unsure:
            await search(bus, wanted, [*gateways, "silent"], 0.1)
        assert Code.UNAVAILABLE == unsure.value.code
        with pytest.raises(NoAnswer):
            await bus.request(FIND.to(""), wanted, Found | Gone, 0.5)
    finally:
        await bus.close()


@pytest.mark.parametrize("by", ["own id", "x-request-id", "body's id"])
async def test_a_cancelled_stream_ends_with_an_error(
    service: Service, clients: dict[str, AsyncOpenAI], by: str
) -> None:
    """DELETE by any id that the client knows, at whatever gateway, ends it at once; not another's."""
    extra = {"x-request-id": "my-own"} if by == "own id" else {}
    stream = await clients["acme"].chat.completions.create(**LONG, extra_headers=extra)
    first = await anext(aiter(stream))
    id = first.id if by == "body's id" else stream.response.headers["x-request-id"]
    statuses: Counter[tuple[str, int]] = Counter()
    async with httpx.AsyncClient(base_url=f"{service.url}/v1/requests") as http:

        async def asked(name: str, method: str) -> None:
            key = {"x-api-key": KEYS[name][0], "connection": "close"}
            statuses[name, (await http.request(method, f"/{id}", headers=key)).status_code] += 1

        ways = [("lab", "GET"), ("lab", "DELETE"), ("acme", "GET")]
        # Each on a connection of its own: one gateway or the other.
        await asyncio.gather(*(asked(*way) for way in ways for _ in range(4)))
        own = {"x-api-key": KEYS["acme"][0]}
        cancelled = await http.delete(f"/{id}", headers=own)
        with pytest.raises(openai.APIError) as ended:
            async for _ in stream:
                pass
        again = await http.delete(f"/{id}", headers=own)

    assert {("lab", 404): 8, ("acme", 200): 4} == statuses
    assert (200, "cancelled", 404) == (cancelled.status_code, cancelled.json()["status"], again.status_code)
    assert "cancelled" == ended.value.code


async def test_nobody_says_no_for_a_gateway_that_is_silent(
    service: Service, clients: dict[str, AsyncOpenAI]
) -> None:
    """Whose request it may be: who asks is told to come again. The other one's silence keeps nothing back."""
    stream = await clients["acme"].chat.completions.create(**LONG)
    url = f"{service.url}/v1/requests/{stream.response.headers['x-request-id']}"
    headers = {"x-api-key": KEYS["acme"][0], "connection": "close"}
    statuses = set()
    async with stream, httpx.AsyncClient(headers=headers, timeout=60) as http:
        for row in await service.rows("gateway"):
            os.kill(row.pid, signal.SIGSTOP)
            try:
                statuses.add((await http.get(url)).status_code)
            finally:
                os.kill(row.pid, signal.SIGCONT)

    assert {200, 503} == statuses


async def test_a_queued_request_has_a_position(service: Service, clients: dict[str, AsyncOpenAI]) -> None:
    """Who waits can ask how long; cancelled in the queue, a request ends with 499 and its place is free."""

    async with Held(service, clients["acme"]) as held:
        cancelled = [await held.cancel(id) for id in held.queued]
        ended = await held.ended()

    assert 1 in held.queued.values()
    assert [200] * (PLACES - SLOTS) == cancelled
    assert {"held": SLOTS, "cancelled": PLACES - SLOTS} == ended


CALM: dict[tuple[str, int], str] = {}


@pytest.mark.parametrize("role", ["engine", "nats"])
async def test_streams_of_tenants_survive(
    service: Service, clients: dict[str, AsyncOpenAI], role: str
) -> None:
    """kill -9, with jobs of all tenants running and waiting: not a byte differs, and who waited runs."""
    wanted = [(name, seed) for name in NAMES for seed in range(4)]
    for name, seed in wanted:
        patient = clients[name].with_options(max_retries=20)  # what held its places before may still go
        CALM[name, seed] = CALM.get((name, seed)) or await text(patient, seed, 50)
    asking = [asyncio.create_task(text(clients[name], seed, 50)) for name, seed in wanted]
    await asyncio.sleep(0.2)
    os.kill((await service.rows(role))[0].pid, signal.SIGKILL)

    assert [CALM[each] for each in wanted] == await asyncio.gather(*asking)


async def test_jobs_of_a_gateway_that_died_give_their_places_back(
    service: Service, clients: dict[str, AsyncOpenAI]
) -> None:
    """kill -9 of both gateways, with jobs waiting: those who come after them find the queue empty soon."""
    asking = [asyncio.create_task(text(clients["acme"], seed, 3000)) for seed in range(PLACES)]
    await asyncio.sleep(0.5)
    for row in await service.rows("gateway"):
        os.kill(row.pid, signal.SIGKILL)
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    patient = clients["acme"].with_options(max_retries=20)
    after = await asyncio.gather(*(text(patient, seed, 20) for seed in range(PLACES)))

    assert all(isinstance(outcome, (openai.APIError, httpx.HTTPError)) for outcome in outcomes)
    assert all(after)


async def test_a_tenant_that_comes_later(service: Service) -> None:
    """A key added to the file works without a restart, with places of its own."""
    key, line = keys.new("later")
    add(Path(service.env["MILLRACE_KEYS"]), line)
    async with (
        httpx.AsyncClient(base_url=service.url, headers={"x-api-key": key}) as http,
        asyncio.timeout(60),
    ):
        body = {"model": "sim", "messages": HELLO, "max_tokens": 5}
        while (answer := await http.post("/v1/chat/completions", json=body)).status_code == 401:
            await asyncio.sleep(0.1)

    assert 200 == answer.status_code, answer.text


def add(file: Path, line: str) -> None:
    file.write_text(file.read_text().replace("[keys]", f"[keys]\n{line}"))


async def test_no_key_is_written_down(service: Service) -> None:
    """No key is in anything that the service has written, logs and traces included."""
    written = b"".join(every_file(service.folder))

    assert b"gateway" in written
    assert not [name for name, (key, _) in KEYS.items() if key.encode() in written]


def every_file(folder: Path) -> Iterator[bytes]:
    for file in folder.rglob("*"):
        if file.is_file():
            with suppress(FileNotFoundError):  # NATS throws blocks of its queue away
                yield file.read_bytes()
