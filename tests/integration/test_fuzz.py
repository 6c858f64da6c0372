"""Hundreds of bad requests, while good ones are answered as if nothing were wrong."""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.kit.service import Service

HELLO: Any = [{"role": "user", "content": "Hello there."}]
CHAT: dict[str, Any] = {"model": "sim", "messages": HELLO, "max_tokens": 2, "seed": 1}
TEXT: dict[str, Any] = {"model": "sim", "prompt": "Once", "max_tokens": 2, "seed": 1}
GOOD = {**CHAT, "max_tokens": 20}

LITERALS = (
    *("NaN", "-Infinity", "1e400", "-1", "true", '"1"', "0.5", "99999999999999999999", "null"),
    *('""', "[]", "{}", "[null]", '{"type": "nonsense"}', '"\\ud800"', '"\\u0000"', '"\\r\\n\\r\\ndata: x"'),
)
PARAMETERS = (
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p"),
    *("seed", "stop", "stop_token_ids", "min_tokens", "ignore_eos", "stream", "stream_options", "user", "n"),
    *(
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
    ),
    *("tools", "tool_choice", "response_format", "structured_outputs", "reasoning_effort", "metadata"),
    *("chat_template_kwargs", "service_tier", "modalities", "nonsense", "__class__", "\\u0000"),
)
PATHS = ("/v1/chat/completions", "/v1/completions")


def bodies() -> Iterator[tuple[str, bytes]]:
    """A request of each surface with each parameter replaced by each of the literals; and none at all."""
    for name, literal in itertools.product(PARAMETERS, LITERALS):
        for path, base in zip(PATHS, (CHAT, TEXT), strict=True):
            rest = json.dumps({key: value for key, value in base.items() if key != name})[1:]
            yield path, f'{{"{name}": {literal}, {rest}'.encode()
    for path in PATHS:
        for body in (b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b"\0" * 100, b"[" * 50_000, b"{}{}"):
            yield path, body


def requests(rng: random.Random) -> Iterator[bytes]:
    """What is hardly HTTP: each is a connection's whole life."""
    good = json.dumps(CHAT).encode()
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\n"
    whole = start + b"Content-Length: %d\r\n\r\n" % len(good) + good
    for _ in range(60):
        yield rng.randbytes(rng.randrange(1, 400))
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            broken[rng.randrange(80)] = rng.randrange(256)
        yield bytes(broken)
    for header in (
        *(b"Content-Length: 1\r\nTransfer-Encoding: chunked", b"Content-Length: -1", b"Content-Length: 1e3"),
        *(b"Transfer-Encoding: gzip", b"Expect: 100-continue", b"Upgrade: websocket", b"Connection: Upgrade"),
        *(
            b"traceparent: \x1b[31m",
            b"x-request-id: \x01",
            b"x-request-timeout-ms: NaN",
            b"Host: " + b"x" * 9000,
        ),
        *(
            b"Content-Encoding: gzip",
            b"Content-Type: text/plain",
            b"Authorization: \xff",
            b": empty",
            b"A" * 70_000,
        ),
    ):
        yield start + header + b"\r\n\r\n" + good


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    env = {"MILLRACE_SIM_STEP_MS": "1", "MILLRACE_SIM_ROW_MS": "0", "MILLRACE_SIM_TOKEN_MS": "0"}
    made = asyncio.run(Service.start(env=env | {"MILLRACE_SLOW_SENDER_S": "2"}))
    yield made
    asyncio.run(made.stop())


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
        yield client


class Good:
    """Traffic that goes on beside all of it, and what it got."""

    def __init__(self, http: httpx.AsyncClient, expected: Any):
        self.got: Counter[bool] = Counter()
        self._http, self._expected = http, expected
        self._task = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        while True:
            self.got[await answer(self._http) == self._expected] += 1
            self.got[(await self._http.get("/livez")).status_code == 200] += 1

    async def stop(self) -> Counter[bool]:
        """Not before there were some."""
        so_far = self.got.total()
        while self.got.total() < so_far + 4:
            await asyncio.sleep(0.01)
        self._task.cancel()
        await asyncio.wait((self._task,))
        return self.got


async def answer(http: httpx.AsyncClient) -> Any:
    response = await http.post("/v1/chat/completions", json=GOOD)
    return response.json().get("choices")


async def test_bad_bodies(service: Service, http: httpx.AsyncClient) -> None:
    """No value of any parameter is a defect of ours: refusals have their form, and nobody else notices."""
    before = {row.pid for row in await service.ps()}
    good = Good(http, await answer(http))
    wrong: list[tuple[bytes, int, str]] = []
    count = Counter[int]()
    waiting = list(bodies())

    async def send() -> None:
        while waiting:
            path, body = waiting.pop()
            response = await http.post(path, content=body)
            count[response.status_code] += 1
            fine = response.status_code == 200 or (
                400 <= response.status_code < 500
                and {"message", "type", "param", "code"} == set(response.json()["error"])
            )
            if not fine:
                wrong.append((body[:200], response.status_code, response.text[:200]))

    await asyncio.gather(*(send() for _ in range(8)))
    got = await good.stop()

    assert [] == wrong
    assert count.total() >= 500 and count[400] > count.total() / 2
    assert not got[False]
    assert before == {row.pid for row in await service.ps()}


async def test_bad_requests(service: Service, http: httpx.AsyncClient) -> None:
    """Nor is anything that may come over a connection."""
    before = {row.pid for row in await service.ps()}
    good = Good(http, await answer(http))
    answers = Counter[str]()
    address = urlsplit(service.url)
    waiting = list(requests(random.Random(1)))

    async def send() -> None:
        while waiting:
            raw = waiting.pop()
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            try:
                writer.write(raw)
                writer.write_eof()
                async with asyncio.timeout(20):
                    line = await reader.readline()
                answers[line[9:10].decode("latin-1")] += 1
            except ConnectionError:
                answers[""] += 1
            finally:
                writer.transport.abort()

    await asyncio.gather(*(send() for _ in range(8)))
    got = await good.stop()

    assert set(answers) <= {"", "2", "4"}
    assert answers["4"] > 0
    assert not got[False]
    assert before == {row.pid for row in await service.ps()}
