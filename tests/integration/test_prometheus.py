"""Each query of the dashboards and the alerts, asked of a real Prometheus that reads a real Millrace."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from tests.kit.client import ask
from tests.kit.cluster import Cluster
from tests.kit.nats_exporter import exporting
from tests.kit.queries import CONFIG, RULES, alerts, drawn, names
from tests.kit.service import Service, free_port

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="prometheus is not installed"
)

BODY: dict[str, Any] = {"model": "sim", "prompt": list(range(10, 60)), "ignore_eos": True, "stream": True}
RATE = "30s"


def query(url: str, expr: str) -> list[Any]:
    reply = httpx.get(f"{url}/api/v1/query", params={"query": expr.replace("$__rate_interval", RATE)})
    assert reply.status_code == 200, (expr, reply.text)
    return list(reply.json()["data"]["result"])


def config(folder: Path, targets: dict[str, str]) -> Path:
    """The one that is deployed, with other addresses and less patience."""
    given = yaml.safe_load(CONFIG.read_text())
    given["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    for job in given["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    shutil.copy(RULES, folder)
    made = folder / "prometheus.yml"
    made.write_text(yaml.safe_dump(given))
    return made


async def load(service: Service) -> None:
    """Some traffic: answers that end well, one refused, and an engine that dies under a stream."""
    bodies = [{**BODY, "max_tokens": 400} for _ in range(6)]
    streams = [asyncio.create_task(ask(service.url, body, path="/v1/completions")) for body in bodies]
    async with asyncio.timeout(20):
        while not (busy := [engine for engine in await service.rows("engine") if engine.load]):
            await asyncio.sleep(0.05)
    os.kill(busy[0].pid, signal.SIGKILL)
    await ask(service.url, {**BODY, "max_tokens": 10**9}, path="/v1/completions")
    answers = await asyncio.gather(*streams)
    assert [answer.failure for answer in answers] == [""] * len(bodies)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("prometheus")
    nats = Cluster(folder / "keys", nodes=1)
    service: Service | None = None
    process: subprocess.Popen[bytes] | None = None
    try:
        asyncio.run(nats.up())
        env = {"MILLRACE_BROKER": str(nats.folder)}
        service = asyncio.run(Service.start(env=env, engines=2))
        with exporting(f"http://{nats.hosts[0]}:8222") as exporter:
            targets = {"millrace": service.url.removeprefix("http://"), "nats": exporter}
            url = f"http://127.0.0.1:{free_port()}"
            command = ["prometheus", f"--config.file={config(folder, targets)}"]
            command += [f"--storage.tsdb.path={folder / 'data'}"]
            command += [f"--web.listen-address={url.removeprefix('http://')}"]
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            _until_both_are_read(url)
            asyncio.run(load(service))
            asyncio.run(load(service))  # what the first one began to count has grown
            time.sleep(2)  # a few scrapes of how it ended
            yield url
    finally:
        if process:
            process.terminate()
            process.wait()
        if service:
            asyncio.run(service.stop())
        nats.close()


def _until_both_are_read(url: str) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            if len(query(url, "up == 1")) == 2:
                return
        except (httpx.HTTPError, AssertionError):
            pass
        assert time.monotonic() < end, "Prometheus does not read its targets"
        time.sleep(0.2)


def test_every_query_returns_data(prometheus: str) -> None:
    """Of every panel and every alert, and of each metric in it."""
    queries = {**drawn(), **alerts()}
    metrics = {name for expr in queries.values() for name in names(expr)}
    empty = [place for place, expr in queries.items() if not query(prometheus, expr)]
    missing = sorted(name for name in metrics if not query(prometheus, name))

    assert (empty, missing) == ([], [])


def test_the_first_fail_over_is_seen(prometheus: str) -> None:
    """Counters are there before they count, or the first increase would be none."""
    (found,) = query(prometheus, 'sum(increase(millrace_failovers_total{reason="died"}[1m]))')

    assert float(found["value"][1]) > 0


def test_all_alerts_are_taken_and_none_is_firing(prometheus: str) -> None:
    """Of a service that is well but for an engine that came back."""
    groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert {rule["health"] for rule in rules} == {"ok"}
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} <= {"MillraceEnginesLost"}


@pytest.mark.parametrize("what", [["rules", str(RULES)], ["config", str(CONFIG)]], ids=lambda what: what[0])
def test_promtool_takes_it(what: list[str]) -> None:
    done = subprocess.run(["promtool", "check", *what], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
