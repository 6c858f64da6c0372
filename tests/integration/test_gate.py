"""Keys on a real socket: who gets in, as whom, and how often."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from millrace import keys
from millrace.errors import Code
from millrace.keys import ANYONE, Tenant
from millrace.settings import Gateway, SettingError
from services.gateway.door.app import Serving, build, serve
from services.gateway.door.gate import Gate
from tests.kit.desk import ScriptedDesk

HELLO: Any = [{"role": "user", "content": "hello"}]
CHAT = {"model": "sim", "messages": HELLO}

KEY, LINE = keys.new("acme")
OTHER, OTHER_LINE = keys.new("other")
OPERATOR, OPERATOR_LINE = keys.new("prometheus")
FILE = f"[keys]\n{LINE}\n{OTHER_LINE}\n[operators]\n{OPERATOR_LINE}\n"
FILE += "[tenants.acme]\nrequests_per_minute = 60\nburst = 0.05\n"


class Guarded:
    def __init__(self, desk: ScriptedDesk, serving: Serving, gate: Gate, file: Path):
        self.desk, self.serving, self.gate, self.file = desk, serving, gate, file
        self.url = f"http://127.0.0.1:{serving.port}"
        self.http = httpx.AsyncClient(base_url=self.url)

    async def chat(self, key: str, **headers: str) -> httpx.Response:
        bearer = {"authorization": f"Bearer {key}"} if key else {}
        return await self.http.post("/v1/chat/completions", json=CHAT, headers={**bearer, **headers})


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Guarded]:
    file = tmp_path / "keys.toml"
    file.write_text(FILE)
    desk, settings = ScriptedDesk(), Gateway(port=0, keys=str(file), deadline_s=30.0)
    gate = Gate(settings.keys, settings.deadline_s)
    made = Guarded(desk, await serve(build(desk, settings, gate), settings), gate, file)
    yield made
    await made.http.aclose()
    await made.serving.stop(0)


async def test_sdk_with_a_key(site: Guarded) -> None:
    """The SDK's own key lets it in, as its tenant; a wrong one is the SDK's AuthenticationError."""
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=KEY, max_retries=0) as sdk:
        await sdk.chat.completions.create(model="sim", messages=HELLO)
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=KEY + "x") as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            await sdk.chat.completions.create(model="sim", messages=HELLO)

    assert (401, "invalid_api_key") == (caught.value.status_code, caught.value.code)
    assert ["acme"] == [ask.visit.tenant.name for ask in site.desk.asks]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Basic " + KEY},
        {"authorization": KEY},
        {"authorization": "Bearer " + KEY[:-1]},
        {"authorization": "Bearer " + KEY + " x"},
        {"x-api-key": LINE.split('"')[1]},
        {"x-api-key": "x" * 10_000},
        {"cookie": "key=" + KEY},
    ],
)
async def test_nobody_else(site: Guarded, headers: dict[str, str]) -> None:
    """Without a key, or with something else in its place, nothing is read and nothing is told."""
    answers = [
        await site.http.request(method, path, headers=headers, content=content)
        for method, path, content in (
            ("POST", "/v1/chat/completions", json.dumps(CHAT)),
            ("POST", "/v1/chat/completions", "{broken"),
            ("GET", "/v1/models", None),
        )
    ]

    assert [(401, Code.AUTHENTICATION)] * 3 == [(a.status_code, a.json()["error"]["code"]) for a in answers]
    assert not any(KEY in a.text for a in answers)
    assert [] == site.desk.asks


async def test_anthropics_header(site: Guarded) -> None:
    """A key may come as x-api-key; who has none is told so in the form of the surface."""
    refused = await site.http.post("/v1/messages", json={}, headers={"x-api-key": "x"})

    assert 200 == (await site.chat("", **{"x-api-key": OTHER})).status_code
    assert (401, "error", "authentication_error") == (
        refused.status_code,
        refused.json()["type"],
        refused.json()["error"]["type"],
    )


async def test_the_page_is_open_and_what_it_shows_is_not(site: Guarded) -> None:
    """A browser has no key before its user has typed it in there."""
    for path in ("/ui", "/ui/main.js"):
        assert (await site.http.get(path)).status_code == 200
    for path in ("/ui/events", "/v1/models", "/metrics"):
        assert (await site.http.get(path)).status_code == 401
    assert (await site.http.post("/ui/kill")).status_code == 401


async def test_health_is_open(site: Guarded) -> None:
    """Who watches the service needs no key."""
    assert [200] * 3 == [(await site.http.get(p)).status_code for p in ("/livez", "/readyz", "/health")]


async def test_one_tenants_limit_is_its_own(site: Guarded) -> None:
    """After its burst a tenant gets 429 with the time to wait and what remains; another one goes on."""
    mine = [await site.chat(KEY) for _ in range(4)]
    other = await site.chat(OTHER)
    refused = mine[3]

    assert [200, 200, 200, 429, 200] == [a.status_code for a in (*mine, other)]
    assert "rate_limit_exceeded" == refused.json()["error"]["code"]
    assert ("60", "0", "true") == tuple(
        refused.headers[name]
        for name in ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-should-retry")
    )
    assert 0 < int(refused.headers["retry-after-ms"]) <= 1000
    assert "x-ratelimit-limit-requests" not in other.headers


async def test_a_key_file_that_changes(site: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """What the file says counts once it is looked at again; a broken one does not, and no key is logged."""
    key, line = keys.new("new")
    before = (await site.chat(key)).status_code
    site.file.write_text(f"[keys]\n{line}\n")
    site.gate.refresh(1, time.monotonic())
    after = [(await site.chat(key)).status_code, (await site.chat(OTHER)).status_code]
    site.file.write_text("[keys]\n" + key)
    site.gate.refresh(1, time.monotonic())
    broken = (await site.chat(key)).status_code
    site.file.unlink()
    site.gate.refresh(1, time.monotonic())
    gone = (await site.chat(key)).status_code

    assert (401, [200, 401], 200, 200) == (before, after, broken, gone)
    assert 2 == sum("cannot be used" in record.message for record in caplog.records)
    assert key not in caplog.text


async def test_a_deadline_of_the_clients(site: Guarded) -> None:
    """x-request-timeout-ms is the request's time, but never more than the service gives."""
    for given in ({}, {"x-request-timeout-ms": "1500"}, {"x-request-timeout-ms": "999999"}):
        await site.chat(OTHER, **given)
    bad = [
        await site.chat(OTHER, **{"x-request-timeout-ms": v}) for v in ("0", "-1", "1.5", "x", "", "9" * 13)
    ]

    assert [30.0, 1.5, 30.0] == [ask.visit.deadline_s for ask in site.desk.asks]
    assert [(400, "x-request-timeout-ms")] * 6 == [(a.status_code, a.json()["error"]["param"]) for a in bad]


async def test_metrics_are_an_operators(site: Guarded) -> None:
    """They tell of all tenants: a tenant's key does not open them, and an operator's opens nothing else."""
    bearers = {key: {"authorization": f"Bearer {key}"} for key in (OPERATOR, KEY)}
    scraped = await site.http.get("/metrics", headers=bearers[OPERATOR])
    refused = [await site.http.get(path, headers=bearers[KEY]) for path in ("/metrics", "/metrics/")]
    beyond = [await site.http.get(path, headers=bearers[OPERATOR]) for path in ("/v1/models", "/ui/events")]
    chat = await site.chat(OPERATOR)

    assert 200 == scraped.status_code and scraped.headers["content-type"].startswith("text/plain")
    assert [401] * 5 == [answer.status_code for answer in (*refused, *beyond, chat)]
    assert "operator's key, not a tenant's" in refused[0].json()["error"]["message"]
    assert "for /metrics alone" in chat.json()["error"]["message"] and not site.desk.asks


async def test_metrics_may_be_open(tmp_path: Path) -> None:
    """If the setting says so: nothing else is."""
    desk, settings = ScriptedDesk(), Gateway(port=0, keys=json.dumps({"keys": {}}), metrics_open=True)
    serving = await serve(build(desk, settings), settings)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{serving.port}") as http:
            answers = [await http.get(path) for path in ("/metrics", "/v1/models")]
    finally:
        await serving.stop(0)

    assert [200, 401] == [answer.status_code for answer in answers]


async def test_without_keys_everybody_may_come() -> None:
    """Then a key means nothing, and everybody is the same tenant."""
    desk, settings = ScriptedDesk(), Gateway(port=0)
    serving = await serve(build(desk, settings), settings)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{serving.port}") as http:
            answer = await http.post("/v1/chat/completions", json=CHAT, headers={"x-api-key": "any"})
    finally:
        await serving.stop(0)

    assert (200, ANYONE) == (answer.status_code, desk.asks[0].visit.tenant)


def test_keys_in_the_setting_itself() -> None:
    """The setting may be the JSON, as from an environment variable; what is wrong is told at the start."""
    gate = Gate(json.dumps({"keys": {LINE.split('"')[1]: "acme"}}), 1.0)

    assert Tenant(name="acme") == gate.allowance(KEY.encode(), 0.0).tenant
    with pytest.raises(SettingError, match="no-such-file"):
        Gate("no-such-file", 1.0)
    with pytest.raises(SettingError, match="the setting"):
        Gate('{"keys": {"x": "y"}}', 1.0)


async def test_a_refused_body_is_not_waited_for(site: Guarded) -> None:
    """Who has no key is refused when the head is there, however much was announced."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.serving.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 4000000\r\n\r\n")
    async with asyncio.timeout(10):
        line = await reader.readline()
    writer.close()

    assert b"HTTP/1.1 401 Unauthorized\r\n" == line


async def test_each_surface_s_client_brings_its_key(site: Guarded) -> None:
    """Anthropic's as x-api-key, Ollama's as a bearer token; without one it is an error in their own form."""
    asked: Any = {"model": "sim", "messages": HELLO}
    async with anthropic.AsyncAnthropic(base_url=site.url, api_key=OTHER, max_retries=0) as claude:
        await claude.messages.create(**asked, max_tokens=5)
    async with anthropic.AsyncAnthropic(base_url=site.url, api_key="x", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await stranger.messages.create(**asked, max_tokens=5)
    async with ollama.AsyncClient(host=site.url, headers={"authorization": f"Bearer {OTHER}"}) as llama:
        await llama.chat(**asked)
    async with ollama.AsyncClient(host=site.url) as stranger_:
        with pytest.raises(ollama.ResponseError, match="API key") as refused:
            await stranger_.chat(**asked)
    body: Any = caught.value.body

    assert ("error", "authentication_error") == (body["type"], body["error"]["type"])
    assert 401 == refused.value.status_code
    assert ["other", "other"] == [ask.visit.tenant.name for ask in site.desk.asks]
    assert "Ollama is running" == (await site.http.get("/")).text


async def test_a_tenant_s_responses_are_its_own(site: Guarded) -> None:
    """Another tenant's is not found: not read, not gone on with, not deleted."""
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=OTHER, max_retries=0) as own:
        made = await own.responses.create(model="sim", input="hello")
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=KEY, max_retries=0) as sdk:
            for call in (sdk.responses.retrieve, sdk.responses.delete, sdk.responses.cancel):
                with pytest.raises(openai.NotFoundError):
                    await call(made.id)
            with pytest.raises(openai.NotFoundError):
                await sdk.with_options(max_retries=3).responses.create(
                    model="sim", input="a", previous_response_id=made.id
                )
        again = await own.responses.retrieve(made.id)

    assert made.output_text == again.output_text == "Hello"
