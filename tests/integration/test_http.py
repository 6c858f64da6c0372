"""The HTTP face on a real socket, with a desk that plays a script behind it."""

import asyncio
import contextlib
import json
import os
import re
import resource
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest

from millrace.errors import Code, Failure
from millrace.settings import Gateway
from services.gateway.app import Serving, build, serve
from services.gateway.desk import Ask, Piece
from tests.kit.desk import ScriptedDesk, said, until

HELLO: Any = [{"role": "user", "content": "hello"}]
LONG = 10.0  # seconds after which a test hangs rather than waits


class Site:
    """A gateway's face with its desk and the ways to talk to it."""

    def __init__(self, desk: ScriptedDesk, serving: Serving):
        self.desk = desk
        self.serving = serving
        self.url = f"http://127.0.0.1:{serving.port}"
        self.sdk = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        self.http = httpx.AsyncClient(base_url=self.url)
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.serving.port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await self.sdk.close()
        await self.http.aclose()
        await self.serving.stop(0)

    async def raw(self, data: bytes) -> bytes:
        """All that comes back until the server closes."""
        reader, writer = await self.connect()
        writer.write(data)
        async with asyncio.timeout(LONG):
            answer = await reader.read()
        writer.close()
        return answer

    async def chat(self, **params: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json={"model": "sim", "messages": HELLO} | params)


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    sites: list[Site] = []

    async def begin(*script: Any, **settings: Any) -> Site:
        desk = ScriptedDesk(*script)
        gateway = Gateway(**({"port": 0} | settings))
        site = Site(desk, await serve(build(desk, gateway), gateway))
        sites.append(site)
        return site

    yield begin
    for site in sites:
        await site.close()


def request(
    body: dict[str, Any], path: str = "/v1/chat/completions", headers: str = "Connection: close"
) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\nContent-Length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


STREAMED = {"model": "sim", "messages": HELLO, "stream": True}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "param", "code"} == set(error)
    return error


# Answers


async def test_sdk_whole(start: Start) -> None:
    """The SDK gets the text, the reason for the end and the exact usage."""
    site = await start(said("Hel", "", "lo", finish="length"))
    answer = await site.sdk.chat.completions.create(model="sim", messages=HELLO)

    assert ("Hello", "length") == (answer.choices[0].message.content, answer.choices[0].finish_reason)
    assert answer.usage is not None
    assert (7, 3, 10) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
        answer.usage.total_tokens,
    )
    assert site.desk.answers[0].cancelled.is_set()


async def test_sdk_stream(start: Start) -> None:
    """The SDK gets a role, each token as it comes, the reason for the end and the usage."""
    site = await start([Piece(1, "Hel", "")], 0.01, said("lo"))
    stream = await site.sdk.chat.completions.create(
        model="sim", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert "assistant" == chunks[0].choices[0].delta.role
    assert ["", "Hel", "lo", None] == [chunk.choices[0].delta.content for chunk in chunks[:-1]]
    assert "stop" == chunks[-2].choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert ([], 9) == (chunks[-1].choices, chunks[-1].usage.total_tokens)


async def test_sdk_completions(start: Start) -> None:
    """The older route answers whole and streamed."""
    site = await start(said("a", "b"))
    whole = await site.sdk.completions.create(model="sim", prompt="x")
    stream = await site.sdk.completions.create(model="sim", prompt=[1, 2], stream=True)

    assert "ab" == whole.choices[0].text
    assert "ab" == "".join([chunk.choices[0].text async for chunk in stream])


def test_sync_sdk_and_models() -> None:
    """The blocking client works as well; models are listed and looked up, odd names too."""

    async def main() -> tuple[str, list[str], str]:
        desk = ScriptedDesk(said("ok"))
        desk.served.append(type(desk.served[0])("org/other", 10, 5))
        gateway = Gateway(port=0)
        serving = await serve(build(desk, gateway), gateway)

        def talk() -> tuple[str, list[str], str]:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none") as sdk:
                answer = sdk.chat.completions.create(model="sim", messages=HELLO)
                names = [model.id for model in sdk.models.list()]
                return answer.choices[0].message.content or "", names, sdk.models.retrieve("org/other").id

        try:
            return await asyncio.to_thread(talk)
        finally:
            await serving.stop(0)

    assert ("ok", ["sim", "org/other"], "org/other") == asyncio.run(main())


async def test_token_ids(start: Start) -> None:
    """With return_token_ids a whole answer has the ids of all its tokens."""
    site = await start(said("a", "", "b"))
    answer = (await site.chat(return_token_ids=True)).json()

    assert [100, 101, 102] == answer["choices"][0]["token_ids"]


async def test_sse_bytes(start: Start) -> None:
    """On the wire a stream is data lines and blank lines, ended by [DONE] with the end of the body."""
    site = await start([Piece(1, "a\n\ndata: x", "")], said("b"))
    raw = await site.raw(request(STREAMED))
    head, _, body = raw.partition(b"\r\n\r\n")
    text = b"".join(re.findall(rb"(?s)[0-9a-f]+\r\n(.*?\n\n)\r\n", body)).decode()

    assert b"content-type: text/event-stream" in head
    assert ["data"] * 5 == [line.partition(":")[0] for line in text.split("\n\n") if line]
    assert text.endswith("data: [DONE]\n\n")
    assert body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# Failures


async def test_failure_before_the_first_token(start: Start) -> None:
    """A stream that fails before it begins is an error with its own status."""
    site = await start(Failure(Code.DEADLINE_EXCEEDED, "too late"))
    with pytest.raises(openai.APIStatusError) as caught:
        await site.sdk.chat.completions.create(model="sim", messages=HELLO, stream=True)

    assert (504, "deadline_exceeded") == (caught.value.status_code, caught.value.code)
    assert site.desk.answers[0].cancelled.is_set()


async def test_failure_in_the_middle(start: Start) -> None:
    """A stream that fails later ends with an error event and a closed connection, never with [DONE]."""
    site = await start([Piece(1, "a", "")], 0.01, Failure(Code.JOB_CRASHED, "it crashed"))
    raw = await site.raw(request(STREAMED, headers="X-Kept: alive"))
    stream = await site.sdk.chat.completions.create(model="sim", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="it crashed"):
        [chunk async for chunk in stream]

    assert b'"a"' in raw and b"[DONE]" not in raw
    assert raw.endswith(b'"code":"job_crashed"}}\n\n\r\n0\r\n\r\n')


async def test_queue_full(start: Start) -> None:
    """A full queue is 429 with the time to wait, which the SDK follows."""
    site = await start()

    async def full(ask: Ask) -> None:
        raise Failure(Code.QUEUE_FULL, "The queue is full.", retry_after=1.25)

    site.desk.opening = full
    response = await site.chat()

    assert (429, "rate_limit_error", "queue_full") == (
        response.status_code,
        error_of(response)["type"],
        error_of(response)["code"],
    )
    assert ("2", "1250", "true") == tuple(
        response.headers[name] for name in ("retry-after", "retry-after-ms", "x-should-retry")
    )


async def test_sdk_retries_what_may_be_retried(start: Start) -> None:
    """After a 429 the SDK comes back by itself; after a 400 it does not."""
    site = await start(said("ok"))
    calls = 0

    async def full_once(ask: Ask) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Failure(Code.QUEUE_FULL, "The queue is full.", retry_after=0.01)

    site.desk.opening = full_once
    await site.sdk.with_options(max_retries=2).chat.completions.create(model="sim", messages=HELLO)

    assert 2 == calls


async def test_a_defect_tells_nothing(start: Start) -> None:
    """A crash of ours is a 500 without its text; the log has it."""
    site = await start()

    async def crash(ask: Ask) -> None:
        raise RuntimeError("secret at /etc/passwd")

    site.desk.opening = crash
    response = await site.chat()

    assert (500, "internal") == (response.status_code, error_of(response)["code"])
    assert "secret" not in response.text and "Traceback" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1/models/nope", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", 400, "invalid_request"),
    ],
)
async def test_every_refusal_is_openai_shaped(
    start: Start, method: str, path: str, status: int, code: str
) -> None:
    """Whatever is refused, the error has OpenAI's form and the headers every response has."""
    site = await start()
    response = await site.http.request(method, path, headers={"x-request-id": "mine"})

    assert (status, code) == (response.status_code, error_of(response)["code"])
    assert ("mine", "false") == (response.headers["x-request-id"], response.headers["x-should-retry"])
    assert {"openai-processing-ms", "traceparent"} <= set(response.headers)


async def test_unknown_model(start: Start) -> None:
    """A model that is not served is 404 and nothing is asked; with none served yet, 503."""
    site = await start()
    missing = await site.chat(model="nope")
    site.desk.served = []
    early = await site.chat()

    assert [(404, "model_not_found"), (503, "unavailable")] == [
        (response.status_code, error_of(response)["code"]) for response in (missing, early)
    ]
    assert [] == site.desk.asks


@pytest.mark.parametrize(
    ("name", "literal"),
    [
        ("temperature", "NaN"),
        ("seed", "1e400"),
        ("max_tokens", "true"),
        ("top_p", '"1"'),
        ("n", "-1"),
        ("wat", "0"),
    ],
)
async def test_bad_parameters(start: Start, name: str, literal: str) -> None:
    """A bad parameter is 400 with its name, and reaches no desk."""
    site = await start()
    body = f'{{"model": "sim", "messages": {json.dumps(HELLO)}, "{name}": {literal}}}'
    response = await site.http.post("/v1/chat/completions", content=body)

    assert (400, name) == (response.status_code, error_of(response)["param"])
    assert [] == site.desk.asks


# Bodies and heads


async def test_large_body(start: Start) -> None:
    """A body over the limit is refused while it comes: announced, or in chunks without end."""
    site = await start(max_body=1000)
    announced = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 1001\r\n\r\n"
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
    statuses = []
    for head in (announced, chunked + b"3e9\r\n" + b" " * 1001 + b"\r\n"):
        reader, writer = await site.connect()
        writer.write(head)
        async with asyncio.timeout(LONG):
            statuses.append(await reader.readline())
        writer.close()
    fits = request({"model": "sim", "messages": HELLO})

    assert [b"HTTP/1.1 413 Request Entity Too Large\r\n"] * 2 == statuses
    assert (await site.raw(fits)).startswith(b"HTTP/1.1 200")


async def test_compressed_body(start: Start) -> None:
    """A compressed body is refused: a few bytes of it may be gigabytes."""
    site = await start()
    response = await site.http.post(
        "/v1/chat/completions", content=b"x", headers={"content-encoding": "gzip"}
    )

    assert 400 == response.status_code
    assert "Content-Encoding" in error_of(response)["message"]


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
        POST + b"Content-Length: 0x2\r\n\r\n{}",
        b"GET /livez HTTP/1.1\nHost: t\n\n",
        b"GET /livez HTTP/1.1\r\nHost: t\nX: y\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: t\r\n folded\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_ambiguous_requests(start: Start, raw: bytes) -> None:
    """A request that two servers may read differently is 400, in OpenAI's form, and the end."""
    site = await start()
    head, _, body = (await site.raw(raw)).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"connection: close" in head and b"x-request-id: " in head
    assert "invalid_request" == json.loads(body)["error"]["code"]


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
async def test_huge_head(start: Start, end: bytes) -> None:
    """Headers without measure are refused, complete or not."""
    site = await start()

    assert (await site.raw(b"GET /livez HTTP/1.1\r\nX: " + b"y" * 70_000 + end)).startswith(b"HTTP/1.1 431 ")


async def drip(site: Site, begin: bytes, drop: bytes) -> bytes:
    """What comes back to a client that sends a byte now and then."""
    reader, writer = await site.connect()
    writer.write(begin)

    async def on() -> None:
        while True:
            await asyncio.sleep(0.05)
            writer.write(drop)

    dripping = asyncio.create_task(on())
    answer = b""
    async with asyncio.timeout(LONG):
        with contextlib.suppress(ConnectionError):  # a drop that came after the end
            while part := await reader.read(1 << 16):
                answer += part
    dripping.cancel()
    return answer


async def test_a_body_that_drips(start: Start) -> None:
    """A body that has not come in time, however steadily it comes, is 408 and the end of the connection."""
    site = await start(slow_sender_s=0.3)
    head, _, body = (await drip(site, POST + b"Content-Length: 9999\r\n\r\n{", b" ")).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 408 ") and b"connection: close" in head and b"retry-after: " in head
    assert "request_timeout" == json.loads(body)["error"]["code"]
    assert [] == site.desk.asks


async def test_a_head_that_drips(start: Start) -> None:
    """So is a head; a connection that never says anything is closed without a word."""
    site = await start(slow_sender_s=0.3)
    slow = await drip(site, b"GET /livez HTTP/1.1\r\nHost: t\r\nX-Slow: ", b"y")
    silent = await drip(site, b"", b"")

    assert slow.startswith(b"HTTP/1.1 408 ") and b'"code":"request_timeout"' in slow
    assert b"" == silent


async def test_half_open_connections(start: Start) -> None:
    """Hundreds of clients with half a request each keep nobody else from being served."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    site = await start()
    for _ in range(500):
        _, writer = await site.connect()
        writer.write(POST + b"Content-Length: 10\r\n\r\n{")
    async with asyncio.timeout(LONG):
        await until(lambda: site.serving.connections == 500)
        answer = await site.chat()

    assert 200 == answer.status_code


async def test_too_many_connections(start: Start) -> None:
    """Beyond the limit a connection is told so and closed; once one has gone there is room again."""
    site = await start(connections=3)
    held = [await site.connect() for _ in range(3)]
    async with asyncio.timeout(LONG):
        await until(lambda: site.serving.connections == 3)
        reader, _ = await site.connect()
        refused = await reader.read()
        held[0][1].close()
        await until(lambda: site.serving.connections == 2)

    assert refused.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in refused
    assert 200 == (await site.http.get("/livez")).status_code


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"messages": HELLO * 2049}, "messages"),
        ({"messages": HELLO, "stop": ["x"] * 17}, "stop"),
        ({"messages": HELLO, "stop": "x" * 257}, "stop"),
        ({"messages": HELLO, "logit_bias": {str(n): 1 for n in range(100_000)}}, "logit_bias"),
        ({"messages": HELLO, "metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"messages": HELLO, "stop_token_ids": [1] * 257}, "stop_token_ids"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}] * 9}]}, "messages[0].content[0].text"),
    ],
)
async def test_counts_have_limits(start: Start, body: dict[str, Any], named: str) -> None:
    """Too many of anything is 400 with its name, and reaches no desk."""
    site = await start()
    response = await site.http.post("/v1/chat/completions", json={"model": "sim"} | body)

    assert (400, named) == (response.status_code, error_of(response)["param"])
    assert [] == site.desk.asks


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000, "[" * 1000 + "]" * 1000])
@pytest.mark.parametrize("name", ["messages", "metadata", "chat_template_kwargs", "tools", "prediction"])
async def test_nesting_has_a_limit(start: Start, name: str, nested: str) -> None:
    """JSON that is nested without measure is 400, wherever it stands."""
    site = await start()
    body = f'{{"model": "sim", "messages": {json.dumps(HELLO)}, "{name}": {nested}}}'
    response = await site.http.post("/v1/chat/completions", content=body)

    assert (400, "invalid_request") == (response.status_code, error_of(response)["code"])
    assert [] == site.desk.asks


@pytest.mark.parametrize("scheme", ["http", "https", "file", "gopher", "data"])
@pytest.mark.parametrize("kind", ["image_url", "audio_url", "video_url"])
async def test_no_address_is_ever_visited(start: Start, kind: str, scheme: str) -> None:
    """Media are refused by name, and nobody connects to where they are said to be."""
    visited = asyncio.Event()
    canary = await asyncio.start_server(lambda reader, writer: visited.set(), "127.0.0.1", 0)
    port = canary.sockets[0].getsockname()[1]
    part = {"type": kind, kind: {"url": f"{scheme}://127.0.0.1:{port}/x"}}
    site = await start()
    response = await site.chat(messages=[{"role": "user", "content": [part]}])
    canary.close()

    assert (400, "messages[0].content[0]") == (response.status_code, error_of(response)["param"])
    assert [] == site.desk.asks and not visited.is_set()


EVIL = "\r\nX-Evil: 1\r\n\r\ndata: [DONE]\n\n\x1b[31m\u2028"


async def test_injected_text_stays_text(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Line ends and control characters in a model's name, a token or a header stay inside of JSON."""
    site = await start([Piece(1, EVIL, "")], said("b"))
    unknown = await site.chat(model=EVIL)
    answer = await site.chat(user=EVIL)
    stream = await site.sdk.chat.completions.create(model="sim", messages=HELLO, stream=True, user=EVIL)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    raw = await site.raw(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\n"
        b"x-request-id: a\x1b[31m\r\ntraceparent: \x1b[31m\r\n\r\n"
    )

    assert (404, True) == (unknown.status_code, EVIL in error_of(unknown)["message"])
    assert EVIL + "b" == answer.json()["choices"][0]["message"]["content"] == text
    assert not any("x-evil" in response.headers for response in (unknown, answer))
    assert b"\x1b" not in raw and "\x1b" not in caplog.text


async def test_garbage_after_a_request(start: Start) -> None:
    """What follows a streaming request cannot write into its answer: the connection is cut."""
    site = await start([Piece(1, "a", "")], 60.0)
    reader, writer = await site.connect()
    writer.write(request(STREAMED, headers="X-Kept: alive"))
    async with asyncio.timeout(LONG):
        await reader.readuntil(b'"a"')
        writer.write(b"garbage\r\n\r\n")
        rest = await reader.read()
        await site.desk.answers[0].cancelled.wait()

    assert b"HTTP/1.1" not in rest


# Headers


async def test_request_ids(start: Start) -> None:
    """A sane request id comes back; anything else is replaced by one of ours."""
    site = await start()
    ids = [
        (await site.http.get("/livez", headers={"x-request-id": given})).headers["x-request-id"]
        for given in ("a-1", "x" * 201, "tab\there")
    ]

    assert "a-1" == ids[0]
    assert all(re.fullmatch("req_[0-9a-f]{32}", made) for made in ids[1:])


async def test_traces(start: Start) -> None:
    """The client's trace goes on, in a span of its own, to the desk and back; a bad one does not."""
    site = await start()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    given, bad = [
        await site.http.post(
            "/v1/chat/completions", json={"model": "sim", "messages": HELLO}, headers={"traceparent": value}
        )
        for value in (trace, "00-evil")
    ]

    assert given.headers["traceparent"] == site.desk.asks[0].visit.traceparent
    assert trace[:36] == given.headers["traceparent"][:36] and trace != given.headers["traceparent"]
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", bad.headers["traceparent"])


async def test_health(start: Start) -> None:
    """Alive is not ready: readiness names what is missing, and a draining gateway is not ready."""
    site = await start()
    statuses = [(await site.http.get(path)).status_code for path in ("/health", "/livez", "/readyz")]
    site.desk.lacks = ["engine", "nats"]
    lacking = await site.http.get("/readyz")
    alive = await site.http.get("/livez")
    site.desk.lacks, site.desk.draining = [], True
    draining = await site.http.get("/readyz")

    assert [200, 200, 200] == statuses
    assert (503, "Not ready, missing: engine, nats.", 200) == (
        lacking.status_code,
        error_of(lacking)["message"],
        alive.status_code,
    )
    assert (503, "draining") == (draining.status_code, error_of(draining)["code"])


# Clients that leave


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves(start: Start, stream: bool, reset: bool) -> None:
    """A client that goes away, politely or not, frees its slot at once, streaming or waiting."""
    site = await start([Piece(1, "a", "")], 60.0)
    reader, writer = await site.connect()
    writer.write(request(STREAMED | {"stream": stream}))
    async with asyncio.timeout(LONG):
        if stream:
            await reader.readuntil(b'"a"')
        await until(lambda: bool(site.desk.answers) and site.desk.answers[0].taken == 2)
        if reset:
            writer.transport.abort()
        else:
            writer.close()
        await site.desk.answers[0].cancelled.wait()


async def test_a_client_that_leaves_before_the_job_is_queued(start: Start) -> None:
    """The opening itself is cancelled then."""
    site = await start()
    opening, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(ask: Ask) -> None:
        opening.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    site.desk.opening = slow
    _, writer = await site.connect()
    writer.write(request(STREAMED))
    async with asyncio.timeout(LONG):
        await opening.wait()
        writer.close()
        await cancelled.wait()


async def test_a_client_that_sent_ahead_leaves(start: Start) -> None:
    """A client with a second request on the same connection frees the first one's slot as well."""
    site = await start([Piece(1, "a", "")], 0.01, *([[Piece(2, "b", "")], 0.01] * 1000))
    reader, writer = await site.connect()
    writer.write(request(STREAMED, headers="X: 1") + request(STREAMED, headers="X: 2"))
    async with asyncio.timeout(LONG):
        await reader.readuntil(b'"a"')
        writer.transport.abort()
        await site.desk.answers[0].cancelled.wait()

    assert 1 == len(site.desk.answers)


async def silent(site: Site, buffer: int = 4096) -> socket.socket:
    """A client that asks for a stream and reads nothing of it."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    slow.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(slow, ("127.0.0.1", site.serving.port))
    await loop.sock_sendall(slow, request(STREAMED))
    await until(lambda: bool(site.desk.answers))
    return slow


BLOCK = [Piece(1, "x" * 50_000, "")]


async def test_a_client_that_does_not_read(start: Start) -> None:
    """Its stream waits with little unread, and is closed after a while; others go on."""
    site = await start(*([BLOCK, 0.0] * 400), slow_reader=100_000, slow_reader_s=0.2)
    async with asyncio.timeout(LONG):
        with await silent(site):
            answer = site.desk.answers[0]
            site.desk.script = [said("fine")]
            other = await site.chat()
            await answer.cancelled.wait()

    assert 200 == other.status_code
    assert answer.taken < 800


async def test_a_client_that_does_not_read_the_end(start: Start) -> None:
    """Nor is the rest of a finished answer kept for a client that never takes it."""
    site = await start(*([BLOCK] * 400), said("end"), slow_reader=50_000_000, slow_reader_s=0.2)
    async with asyncio.timeout(LONG):
        with await silent(site):
            await site.desk.answers[0].cancelled.wait()
            before = site.serving.connections
            await until(lambda: site.serving.connections == 0)

    assert (401, 1) == (site.desk.answers[0].taken, before)


async def test_a_client_that_is_behind_but_reads(start: Start) -> None:
    """A client that reads slowly but steadily loses nothing, however far behind it is."""
    site = await start(*([BLOCK, 0.0] * 200), said("end"), slow_reader=100_000, slow_reader_s=0.7)
    received = bytearray()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LONG):
        with await silent(site, 1 << 16) as slow:
            while part := await loop.sock_recv(slow, 1 << 16):
                received += part
                await asyncio.sleep(0.01)

    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# Going away


async def test_stop_lets_streams_end(start: Start) -> None:
    """Within the grace a running stream ends as if nothing had happened; new requests are refused."""
    go = asyncio.Event()
    site = await start([Piece(1, "a", "")], go, said("b"))
    reader, writer = await site.connect()
    writer.write(request(STREAMED, headers="X-Kept: alive"))
    idle_reader, idle_writer = await site.connect()
    idle_writer.write(b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n")
    async with asyncio.timeout(LONG):
        await reader.readuntil(b'"a"')
        await idle_reader.readuntil(b'"ok"}')
        stopping = asyncio.ensure_future(site.serving.stop(LONG))
        assert b"" == await idle_reader.read()
        with pytest.raises(ConnectionRefusedError):
            await site.connect()
        go.set()
        rest = await reader.read()
        await stopping
    writer.close()
    idle_writer.close()

    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_stop_tells_those_it_cuts(start: Start) -> None:
    """After the grace a stream ends with an error event, and who waits for a whole answer gets a 503."""
    site = await start([Piece(1, "a", "")], 60.0)
    reader, writer = await site.connect()
    writer.write(request(STREAMED))
    waiting = asyncio.ensure_future(site.raw(request(STREAMED | {"stream": False})))
    async with asyncio.timeout(LONG):
        await reader.readuntil(b'"a"')
        await until(lambda: len(site.desk.answers) == 2)
        await site.serving.stop(0.01)
        rest = await reader.read()
        whole = await waiting
    writer.close()

    assert b'"code":"draining"' in rest and b"[DONE]" not in rest
    assert whole.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in whole
    assert all(answer.cancelled.is_set() for answer in site.desk.answers)


async def test_draining_refuses(start: Start) -> None:
    """A draining gateway answers 503, to be tried again, and closes the connection."""
    site = await start()
    site.desk.draining = True
    response = await site.chat()

    assert (503, "draining") == (response.status_code, error_of(response)["code"])
    assert ("close", "1", "true") == tuple(
        response.headers[name] for name in ("connection", "retry-after", "x-should-retry")
    )


async def test_a_sibling_takes_over_the_socket(start: Start) -> None:
    """Two gateways share a listening socket: once one stops, the other has every new connection."""
    with socket.create_server(("127.0.0.1", 0)) as shared:
        site, sibling = await start(fd=shared.fileno()), await start(fd=os.dup(shared.fileno()))
        await site.serving.stop(0)
        for _ in range(20):
            assert 200 == (await sibling.http.get("/livez", headers={"connection": "close"})).status_code
