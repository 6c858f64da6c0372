"""Where the time of a request went, from outside: the trace file, an OTLP collector, the log."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from millrace import tracefile
from millrace.command import waterfall
from millrace.command.waterfall import Row, Trace
from tests.kit.client import Answer, ask
from tests.kit.collector import Collector, collecting
from tests.kit.prometheus import parse, total
from tests.kit.service import Service

BODY = {
    "model": "sim",
    "messages": [{"role": "user", "content": "hello"}],
    "ignore_eos": True,
    "stream": True,
}
LEAST = 0.05
"""Of a request's time; what is shorter is no gap."""

HOPS = {"tokenize", "publish", "claim", "prefill", "decode", "detokenize"}
FAR = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(scope="module")
def service(collector: Collector) -> Iterator[Service]:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=abc",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
    }
    made = asyncio.run(Service.start(env=env, engines=2))
    yield made
    asyncio.run(made.stop())


def until(found: Callable[[], Any], limit: float = 60.0) -> Any:
    end = time.monotonic() + limit
    while not (got := found()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return got


def trace_of(service: Service, answer: Answer) -> Trace:
    """As the file has it."""

    def find() -> Trace | None:
        traces = (waterfall.parsed(line) for line in tracefile.read(service.folder))
        return waterfall.named((t for t in traces if t), answer.headers["x-trace-id"])

    found: Trace = until(find)
    return found


def steps(service: Service) -> list[Trace]:
    traces = (waterfall.parsed(line) for line in tracefile.read(service.folder))
    return [t for t in traces if t and t.is_step]


def gaps(trace: Trace) -> list[float]:
    """The shares of the request's time that no hop accounts for. What only lies around hops is none."""
    parents = {row.parent for row in trace.rows}
    whole = trace.top
    hops = [row for row in trace.rows if row.id not in parents and row.name != "stream"]
    at, found = whole.began, []
    for row in sorted(hops, key=lambda row: row.began):
        found.append((row.began - at) / whole.ms)
        at = max(at, row.ended)
    return [*found, (whole.ended - at) / whole.ms]


def names(trace: Trace) -> list[str]:
    return [row.name for row in sorted(trace.rows, key=lambda row: (row.began, -row.ended))]


def row(trace: Trace, name: str, nth: int = 0) -> Row:
    return [row for row in sorted(trace.rows, key=lambda row: row.began) if row.name == name][nth]


async def test_every_hop_is_in_one_trace(service: Service, collector: Collector) -> None:
    """A streamed request's hops follow each other, and no twentieth of its time is unaccounted for."""
    order = ["POST /v1/chat/completions", "chat sim", "admit", "tokenizer wait"]
    order += ["tokenize", "publish", "broker wait", "attempt 1", "claim", "prefill", "decode", "detokenize"]
    for _ in range(10):  # what is not told is not told in any; else this machine was busy
        answer = await ask(service.url, {**BODY, "max_tokens": 150})
        assert "" == answer.failure
        trace = trace_of(service, answer)
        began = [row(trace, name).began for name in order]
        if began == sorted(began) and max(gaps(trace)) <= LEAST and "attempt 2" not in names(trace):
            break
    top = trace.top

    assert {*order, "stream"} == {row.name for row in trace.rows}
    assert began == sorted(began)
    assert {answer.headers["x-trace-id"]} == {row.trace for row in trace.rows}
    assert max(gaps(trace)) <= LEAST
    assert "length" in row(trace, "chat sim").attributes["gen_ai.response.finish_reasons"]
    assert 150 == row(trace, "chat sim").attributes["gen_ai.usage.output_tokens"]
    assert row(trace, "stream").attributes["millrace.bytes"] > 1000
    assert row(trace, "prefill").marks and row(trace, "decode").marks
    assert top.id == answer.headers["traceparent"].split("-")[2]

    links = [link for step in steps(service) for link in step.top.links if link["traceId"] == top.trace]
    assert {row(trace, "chat sim").id} == {link["spanId"] for link in links}

    ids = {row.id for row in trace.rows}
    until(lambda: ids <= {span.span_id.hex() for span in collector.spans})
    assert "abc" == collector.headers["x-key"]


async def test_a_fail_over_is_in_the_same_trace(service: Service) -> None:
    """Both attempts, joined by a link that says why, and still no gap."""
    for _ in range(10):
        answer = Answer(0.0)
        begun = asyncio.Event()

        def news(answer: Answer = answer, begun: asyncio.Event = begun) -> None:
            if len(answer.events) > 60:
                begun.set()

        asked = asyncio.create_task(ask(service.url, {**BODY, "max_tokens": 500}, answer=answer, news=news))
        await begun.wait()
        struck = await service.strike()
        await asked
        await service.settled({"engine": 2})
        trace = trace_of(service, answer)
        attempts = [
            row(trace, f"attempt {n + 1}") for n in range(sum("attempt" in row.name for row in trace.rows))
        ]
        # This machine may itself stop an engine for long enough, or everybody.
        if struck and len(attempts) == 2 and max(gaps(trace)) <= LEAST:
            break
    first, second = attempts

    assert "" == answer.failure
    assert ("died", first.id) == (second.links[0]["attributes"]["millrace.reason"], second.links[0]["spanId"])
    assert first.attributes["millrace.engine"] != second.attributes["millrace.engine"]
    assert first.failed and not second.failed
    assert 500 == first.attributes["millrace.tokens"] + second.attributes["millrace.tokens"]
    assert max(gaps(trace)) <= LEAST


async def test_a_request_is_seen_live(service: Service) -> None:
    """Its hops are told one by one as they end, after a picture of what there is."""
    seen: list[tuple[str, dict[str, Any]]] = []

    async def look() -> None:
        async with (
            httpx.AsyncClient(base_url=service.url) as http,
            http.stream("GET", "/ui/events") as reply,
        ):
            name = ""
            async for line in reply.aiter_lines():
                kind, _, rest = line.partition(": ")
                if kind == "event":
                    name = rest
                elif kind == "data":
                    seen.append((name, json.loads(rest)))
                    told = {data.get("name") or data.get("kind") for _, data in seen}
                    if HOPS | {"ended"} <= told:  # the last hops may come last
                        return

    looking = asyncio.create_task(look())
    async with asyncio.timeout(60):
        while not seen:
            await asyncio.sleep(0.02)
        answer = await ask(service.url, {**BODY, "max_tokens": 800})
        await looking
    first, picture = seen[0]
    happened = [data for name, data in seen if name == "happened"]
    kinds = [data["kind"] for data in happened]
    hops = {data["name"]: data for data in happened if data["kind"] == "hop"}
    busy = [p["load"] for name, data in seen if name == "now" for p in data["processes"] if p["room"] == 16]

    assert ("picture", {"gateway", "tokenizer", "engine", "detokenizer"}) == (
        first,
        {process["role"] for process in picture["processes"]},
    )
    assert ("opened", 1) == (kinds[0], kinds.count("ended")) and "granted" in kinds
    assert HOPS == set(hops)
    assert 0 < hops["prefill"]["ms"] < hops["decode"]["ms"]
    assert max(busy) == 1
    assert answer.headers["x-trace-id"] == happened[0]["trace"]


async def test_the_client_is_parent_but_does_not_decide(service: Service) -> None:
    """Its trace goes on whatever it says of sampling; a trace header that is not one starts nothing."""
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with httpx.AsyncClient(base_url=service.url) as http:

        async def sent(**headers: str) -> str:
            body = {**BODY, "stream": False, "max_tokens": 2}
            reply = await http.post("/v1/chat/completions", json=body, headers=headers)
            return str(reply.headers["traceparent"])

        kept = await sent(traceparent=f"00-{trace}-{span}-00", tracestate="vendor=1")
        bad = [
            await sent(traceparent=value, tracestate="a" * 5000)
            for value in ("00-" + "0" * 32 + f"-{span}-01", f"00-{trace}-{span}-01" + "x" * 3000, "\x1b[31m")
        ]

    assert (trace, "01") == (kept.split("-")[1], kept.split("-")[3])
    assert all(value.split("-")[1] not in (trace, "0" * 32) for value in bad)

    def found() -> Trace | None:
        traces = (waterfall.parsed(line) for line in tracefile.read(service.folder))
        return waterfall.named((t for t in traces if t), trace)

    assert span == until(found).top.parent


async def test_the_command_draws_it(service: Service) -> None:
    """`millrace trace` finds a request by the id its client has, and colours nothing in a pipe."""
    answer = await ask(service.url, {**BODY, "max_tokens": 5})
    trace_of(service, answer)

    def drawn(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "millrace", "trace", *args]
        command += ["--state-dir", str(service.folder)]
        return subprocess.run(command, env=service.env, capture_output=True, text=True, check=False)

    by_id = [drawn(answer.headers["x-request-id"]), drawn(answer.chunks[0]["id"]), drawn("--slow")]
    nobody = drawn("req_nobody")

    assert by_id[0].stdout == by_id[1].stdout
    assert all("detokenize" in each.stdout and "\x1b" not in each.stdout for each in by_id)
    assert (1, True) == (nobody.returncode, "no trace of 'req_nobody'" in nobody.stderr)


async def test_one_line_says_how_a_request_ended(service: Service) -> None:
    """Each, the refused and the abandoned too; none holds what was asked, and none can be forged."""
    secret = "a-secret-of-the-client"
    asked = {"model": "sim", "prompt": secret, "max_tokens": 3, "ignore_eos": True}
    cases: dict[str, dict[str, Any]] = {
        "good": asked,
        "no-model": {**asked, "model": "x\r\n\x1b[31m"},
        "bad": {**asked, "temperature": -1},
    }
    async with httpx.AsyncClient(base_url=service.url) as http, asyncio.timeout(60):
        for name, body in cases.items():
            headers = {"x-request-id": f"line-{name}", "authorization": f"Bearer {secret}"}
            await http.post("/v1/completions", json=body, headers=headers)
        gone = {**asked, "max_tokens": 4000}
        headers = {"x-request-id": "line-gone"}
        leaving = asyncio.create_task(http.post("/v1/completions", json=gone, headers=headers))
        while not (await http.get("/v1/requests/line-gone")).json().get("tokens"):
            await asyncio.sleep(0.02)
        leaving.cancel()
        await asyncio.wait([leaving])
    path = service.folder / "log" / "gateway.log"

    def lines() -> list[dict[str, Any]]:
        said = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in said if str(line.get("request", "")).startswith("line-")]

    until(lambda: len(lines()) >= 4)
    ends = {line["request"]: (line["status"], line["finish"], line["tokens"] > 0) for line in lines()}

    assert 4 == len(lines())
    assert ends == {
        "line-good": (200, "length", True),
        "line-no-model": (404, "model_not_found", False),
        "line-bad": (400, "invalid_request", False),
        "line-gone": (499, "cancelled", True),
    }
    assert secret not in path.read_text() and "\x1b" not in path.read_text()
    assert all(secret not in each.read_text() for each in (service.folder / tracefile.FOLDER).iterdir())


@pytest.mark.parametrize("what", ["down", "slow"])
async def test_a_collector_that_fails_delays_nothing(what: str, tmp_path: Path) -> None:
    """Requests are answered, drops are counted, and the service stops as soon as without it."""
    with collecting(delay_s=60.0) as collector:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url if what == "slow" else FAR,
            "OTEL_BSP_SCHEDULE_DELAY": "10",
            "OTEL_BSP_MAX_QUEUE_SIZE": "1",
            "MILLRACE_DRAIN_S": "1",
        }
        service = await Service.start(env=env, engines=1, folder=tmp_path)
        try:
            body = {**BODY, "max_tokens": 3, "stream": True}
            answers = [await ask(service.url, body) for _ in range(8)]
            found: dict[str, Any] = {}
            async with asyncio.timeout(60), httpx.AsyncClient(base_url=service.url) as http:
                while not total(found, "millrace_traces_dropped_total"):
                    answers.append(await ask(service.url, body))
                    found = parse((await http.get("/metrics")).text)
            (old,) = await service.rows("gateway")
            os.kill(old.pid, signal.SIGTERM)
            async with asyncio.timeout(60):
                while [row.pid for row in await service.rows("gateway")] in ([], [old.pid]):
                    await asyncio.sleep(0.05)
        finally:
            await service.stop()
        log = (tmp_path / "log" / "gateway.log").read_text()

    assert {""} == {answer.failure for answer in answers}
    assert '"message": "stopped"' in log
