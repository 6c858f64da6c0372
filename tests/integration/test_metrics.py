"""What /metrics says after traffic that is known."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest

from tests.kit.client import ask
from tests.kit.collector import Collector
from tests.kit.prometheus import Series, parse, total
from tests.kit.service import Service, free_port

PROMPT = list(range(10, 60))
FAST = {"MILLRACE_SIM_STEP_MS": "1", "MILLRACE_SIM_ROW_MS": "0", "MILLRACE_SIM_TOKEN_MS": "0"}


@pytest.fixture(scope="module")
def service(collector: Collector) -> Iterator[Service]:
    env = {
        **FAST,
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.url}/v1/metrics",
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
    }
    made = asyncio.run(Service.start(env=env, engines=1, gateways=2))
    yield made
    asyncio.run(made.stop())


def scrape(service: Service) -> dict[str, Series]:
    reply = httpx.get(f"{service.url}/metrics", headers={"connection": "close"})
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parse(reply.text)


def until(service: Service, met: Callable[[dict[str, Series]], bool]) -> dict[str, Series]:
    """What is told once it is so, or after a minute what is told instead: processes tell each other of
    themselves twice a second, and the last hops of a request come a little later."""
    end = time.monotonic() + 60
    while not met(found := scrape(service)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def values(found: dict[str, Series], names: Iterable[str]) -> dict[str, float]:
    return {name: total(found, name) for name in names}


async def test_values_are_true(service: Service, collector: Collector) -> None:
    """Whichever gateway is asked tells of all requests: each token, time and end is counted once."""
    wanted = [3, 7, 20, 1]
    bodies: list[dict[str, Any]] = [
        {"model": "sim", "prompt": PROMPT, "max_tokens": n, "ignore_eos": True, "stream": True}
        for n in wanted
    ]
    answers = [await ask(service.url, body, path="/v1/completions") for body in bodies]
    refused = await ask(service.url, {**bodies[0], "max_tokens": 10**9}, path="/v1/completions")
    tokens = sum(wanted)
    expected = {
        "vllm:prompt_tokens_total": len(PROMPT) * len(wanted),
        "vllm:generation_tokens_total": tokens,
        "vllm:time_to_first_token_seconds_count": len(wanted),
        "vllm:inter_token_latency_seconds_count": tokens - len(wanted),
        "vllm:e2e_request_latency_seconds_count": len(wanted),
        "vllm:request_queue_time_seconds_count": len(wanted),
        "vllm:request_prefill_time_seconds_count": len(wanted),
        "vllm:request_generation_tokens_sum": tokens,
        "vllm:prefix_cache_queries_total": len(PROMPT) * len(wanted),
        "vllm:prefix_cache_hits_total": 48 * (len(wanted) - 1),  # the prompt's whole blocks
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
        "vllm:request_decode_time_seconds_count": len(wanted),
        "millrace_rejected_total": 1,
        "millrace_queue_messages": 0,
    }
    found = until(service, lambda found: values(found, expected) == expected)

    assert [""] * len(wanted) == [answer.failure for answer in answers]
    assert 400 == refused.status
    assert expected == values(found, expected)
    assert len(wanted) == total(found, "vllm:request_success_total", finished_reason="length")
    assert 1 == total(found, "millrace_rejected_total", reason="context_length_exceeded")
    assert 5 == sum(value > 0 for value in found["millrace_process_cpu_seconds_total"].values())
    assert 5 == sum(value > 1 << 20 for value in found["millrace_process_resident_bytes"].values())

    end = time.monotonic() + 60
    while not _exported(collector, "vllm:generation_tokens", tokens):
        assert time.monotonic() < end, "the collector was not told"
        await asyncio.sleep(0.1)
    assert {"gen_ai.server.time_to_first_token", "vllm:e2e_request_latency_seconds"} <= {
        metric.name for metric in collector.metrics
    }


def _exported(collector: Collector, name: str, value: float) -> bool:
    """The last values of its series, one for each gateway, add up to this."""
    last: dict[str, float] = {}
    for metric in collector.metrics:
        if metric.name == name:
            for point in metric.sum.data_points:
                labels = {each.key: each.value.string_value for each in point.attributes}
                last[labels["replica"]] = point.as_double
    return sum(last.values()) == value


def test_strangers_add_no_series(service: Service) -> None:
    """Ten thousand made-up models, with what would break a line or a label in their names."""
    before = sum(len(series) for series in scrape(service).values())
    host, port = service.url.removeprefix("http://").split(":")
    count = 10_000
    for start in range(0, count, 100):
        with socket.create_connection((host, int(port))) as sock:
            for n in range(start, start + 100):
                raw = json.dumps({"model": f'm{n}"}}\n\\ 1', "prompt": "x"}).encode()
                lines = ["POST /v1/completions HTTP/1.1", "Host: x", f"Content-Length: {len(raw)}"]
                lines += ["Connection: close"] if n == start + 99 else []
                sock.sendall("\r\n".join([*lines, "", ""]).encode() + raw)
            answered = b"".join(iter(lambda: sock.recv(1 << 16), b""))
            assert 100 == answered.count(b"HTTP/1.1 404")
    found = until(
        service, lambda found: total(found, "millrace_rejected_total", reason="model_not_found") == count
    )

    assert total(found, "millrace_rejected_total", reason="model_not_found") == count
    assert sum(len(series) for series in found.values()) < before + 20


async def test_each_process_may_have_a_port(service: Service) -> None:
    """One started by hand with --metrics-at tells what it knows of itself, and only that."""
    port = free_port()
    env = {
        **service.env,
        "MILLRACE_NATS": (service.folder / "nats" / "detokenizer.url").read_text().strip(),
        "MILLRACE_ID": "by_hand",
        "MILLRACE_METRICS_AT": f"127.0.0.1:{port}",
    }
    command = [sys.executable, "-P", "-m", "millrace", "detokenizer"]
    process = await asyncio.create_subprocess_exec(*command, env=env)
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    text = (await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{port}/")).text
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
    finally:
        process.terminate()
        await process.wait()
    replicas = {dict(key).get("replica") for series in parse(text).values() for key in series}

    assert {"by_hand", None} == replicas
