"""The HTTP face on a real socket, with a desk that plays a script behind it."""

import asyncio
import json
import re
from typing import Any

import httpx
import openai
import pytest
from litestar import Litestar

from millrace.errors import Code, Failure
from millrace.settings import Gateway
from services.gateway.desk import Ask, Piece
from services.gateway.door.app import build, serve
from services.gateway.door.routes import routes
from tests.kit.desk import ScriptedDesk, said
from tests.kit.face import HELLO, LONG, STREAMED, Start, error_of, request

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
    """The older route answers whole and streamed, and which of them is known before its job is made."""
    site = await start(said("a", "b"))
    whole = await site.sdk.completions.create(model="sim", prompt="x")
    stream = await site.sdk.completions.create(model="sim", prompt=[1, 2], stream=True)

    assert "ab" == whole.choices[0].text
    assert "ab" == "".join([chunk.choices[0].text async for chunk in stream])
    assert [True, False] == [ask.visit.whole for ask in site.desk.asks]


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


async def test_a_client_of_http_1_0(start: Start) -> None:
    """It knows no chunks: a stream comes as it is and ends with the connection, and so does a failure."""
    site = await start(said("a", "b"))
    broken = await start([Piece(1, "a", "")], 0.01, Failure(Code.JOB_CRASHED, "it crashed"))
    old = request(STREAMED, headers="X-Kept: alive").replace(b"HTTP/1.1", b"HTTP/1.0")
    told, failed = [(await face.raw(old)).partition(b"\r\n\r\n") for face in (site, broken)]
    whole = await site.raw(old.replace(b"true", b"null"))

    assert not any(b"transfer-encoding" in head for head, _, _ in (told, failed))
    assert [b"data"] * 5 == [line.partition(b":")[0] for line in told[2].split(b"\n\n") if line]
    assert told[2].endswith(b"data: [DONE]\n\n") and failed[2].endswith(b'"code":"job_crashed"}}\n\n')
    assert b"content-length: " in whole


OFFERS = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    "connection: upgrade\r\nupgrade: websocket",
)


@pytest.mark.parametrize("offer", OFFERS)
async def test_an_offer_of_another_protocol_is_passed_over(start: Start, offer: str) -> None:
    """Java's client offers HTTP/2 with its first request: that one is answered, with all that follow."""
    site = await start(said("a", "b"))
    get = b"GET /livez HTTP/1.1\r\nHost: test\r\n%b\r\n\r\n" % offer.encode()
    several = request(STREAMED, headers=offer) + get + request(STREAMED)
    at_once = await site.raw(several)
    reader, writer = await site.connect()
    for at in range(0, len(several), 7):
        writer.write(several[at : at + 7])
        await asyncio.sleep(0)
    async with asyncio.timeout(LONG):
        piecemeal = await reader.read()

    for answers in (at_once, piecemeal):
        assert [b"200"] * 3 == re.findall(rb"HTTP/1.1 (\d+) ", answers)
        assert 2 == answers.count(b"data: [DONE]")
    lone = request(STREAMED, headers=offer + "\r\nConnection: close")
    for last in (lone, request(STREAMED, headers=offer).replace(b"HTTP/1.1", b"HTTP/1.0")):
        assert b"data: [DONE]" in await site.raw(last)


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


@pytest.mark.parametrize("host", ["a b", '{"a": "b'])
async def test_a_host_that_is_none(start: Start, host: str) -> None:
    """It is the client's fault, on every route."""
    site = await start()
    for path in ("/v1/models", "/v1/models/sim", "/nope"):
        response = await site.http.get(path, headers={"host": host})

        assert (400, "invalid_request") == (response.status_code, error_of(response)["code"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "sim", "messages": HELLO, "seed": 1}),
        ("/v1/chat/completions", {"model": "sim", "messages": HELLO, "stream": True}),
        ("/v1/chat/completions", {"model": "sim", "messages": HELLO, "temperature": "hot"}),
        ("/v1/messages", {"model": "other", "messages": HELLO, "max_tokens": 3}),
        ("/api/chat", {"model": "other", "messages": HELLO}),
        ("/v1/models", None),
        ("/openapi.json", None),
    ],
)
async def test_both_ways_to_a_route_say_the_same(
    start: Start, path: str, body: dict[str, object] | None
) -> None:
    """A plain request does not pass Litestar's layers; one with an origin does, where no page may ask."""
    site = await start(said("a", "b"))
    own = {"date", "traceparent", "x-trace-id", "openai-processing-ms", "x-request-id", "request-id"}
    ways = []
    for origin in ({}, {"origin": "https://example.org"}):
        answer = await site.http.request("POST" if body else "GET", path, json=body, headers=origin)
        told = re.sub(r"chatcmpl-\w+|\"created\":\d+", "", answer.text)
        names = [name for name in answer.headers if name not in own]
        ways.append((answer.status_code, {name: answer.headers[name] for name in names}, told))
        assert own - {"request-id"} <= answer.headers.keys()

    assert ways[0] == ways[1]
    assert [path, path] == [visit.route for visit in site.desk.visits]


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


async def test_head_is_answered_wherever_get_is(start: Start) -> None:
    """With the same headers and no body, also where GET's answer has no end."""
    site = await start()
    of_ours = Litestar(routes(ScriptedDesk(), Gateway()), openapi_config=None).routes
    declared = {str(route.path) for route in of_ours if "GET" in route.methods}
    paths = sorted({re.sub(r"{\w+(:\w+)?}", "sim", path) for path in declared} | {"/v1/models/none"})
    got: dict[str, Any] = {}
    for path in paths:
        async with site.http.stream("GET", path) as response:
            got[path] = _said(response)
    one = httpx.AsyncClient(base_url=site.url, limits=httpx.Limits(max_connections=1), timeout=LONG)
    async with one:
        heads = {path: await one.head(path) for path in paths}

    assert {"/ui", "/ui/events", "/v1/models", "/v1/models/sim", "/livez", "/metrics"} - got.keys() == set()
    assert [path for path, head in heads.items() if head.content] == []
    assert got == {path: _said(head) for path, head in heads.items()}


OWN = {"date", "x-request-id", "x-trace-id", "traceparent", "openai-processing-ms", "transfer-encoding"}


def _said(response: httpx.Response) -> tuple[int, dict[str, str]]:
    """But for what is of one request alone, and how a body's end is found."""
    return response.status_code, {k: v for k, v in response.headers.items() if k not in OWN}
