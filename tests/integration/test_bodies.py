"""Bodies and heads that are too large, too slow, too deep or not what they say."""

import asyncio
import contextlib
import gc
import json
import resource
from typing import Any

import pytest

from millrace.errors import Code, Failure
from services.gateway.desk import Piece
from services.gateway.visit import Visit
from tests.kit.desk import said, until
from tests.kit.face import HELLO, LONG, STREAMED, Site, Start, error_of, request


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


async def test_fewer_open_files_are_fewer_connections(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the system's limit has no room for is told so, not dropped."""
    monkeypatch.setattr("resource.getrlimit", lambda kind: (6, 6))
    site = await start()
    for _ in range(3):
        await site.connect()
    async with asyncio.timeout(LONG):
        await until(lambda: site.serving.connections == 3)
        reader, _ = await site.connect()
        refused = await reader.read()

    assert refused.startswith(b"HTTP/1.1 503 ")


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


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("chat/completions", {"service_tier": "gold"}, "Invalid 'service_tier': 'gold' is not supported."),
        ("responses", {"background": True}, "Invalid 'background': true is not supported."),
        ("responses", {"include": ["x"]}, "Invalid 'include[0]': 'x' is not supported."),
        (
            "chat/completions",
            {"messages": [{"role": "assistant", "content": "hi", "annotations": [{}]}]},
            "Invalid 'messages[0].annotations': what it holds is not supported.",
        ),
        ("responses", {"conversation": "x"}, "Invalid 'conversation': what it holds is not supported."),
        ("chat/completions", {"functions": []}, "Invalid 'functions': what it holds is not supported."),
    ],
)
async def test_what_is_not_supported_is_said_in_words(
    start: Start, path: str, body: dict[str, Any], said: str
) -> None:
    """And not in the words of what reads the JSON."""
    site = await start()
    asked = {"model": "sim", "input": "hi"} if path == "responses" else {"model": "sim", "messages": HELLO}
    response = await site.http.post(f"/v1/{path}", json=asked | body)

    assert said == error_of(response)["message"]


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


def visits() -> int:
    return sum(type(each) is Visit for each in gc.get_objects())


@pytest.mark.parametrize(
    ("body", "script", "status"),
    [
        (b"{nothing", [], 400),
        (json.dumps(STREAMED).encode(), [], 503),
        (json.dumps(STREAMED).encode(), [[Piece(1, "a", "")]], 200),
    ],
)
async def test_a_request_that_failed_goes_at_once(
    start: Start, body: bytes, script: list[Any], status: int
) -> None:
    """Its body may have megabytes: it does not wait for the collector, which counts objects and no bytes."""
    site = await start(*script, Failure(Code.UNAVAILABLE, "nobody is there"))
    gc.collect()
    gc.disable()
    try:
        before = visits()
        response = await site.http.post("/v1/chat/completions", content=body)
        await site.http.aclose()
        async with asyncio.timeout(LONG):
            await until(lambda: bool(site.desk.visits))
            site.desk.visits.clear(), site.desk.asks.clear()
            await until(lambda: visits() <= before)
    finally:
        gc.enable()

    assert status == response.status_code
