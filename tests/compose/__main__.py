"""`make compose-test`: the compose file on a real Docker engine, driven as its user would.

Builds, starts, asks with the OpenAI SDK, kills, pauses, restarts and scales under load, and holds every
stream against an undisturbed one, byte for byte. In the end every request's trace has to have come whole to
where Jaeger would be, and Prometheus has to have data for each query of dashboards and alerts. Images that
cannot be pulled have stand-ins (override.yml).
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from tests.chaos.load import Wish, recorded
from tests.compose.traces import ailments, attempts, by_trace
from tests.kit.client import Answer, ask
from tests.kit.queries import alerts, drawn

ROOT = Path(__file__).parent.parent.parent
FILES = ("docker-compose.yml", "tests/compose/override.yml")
PROJECT = "millrace-compose-test"
STREAMS = 20
HANG_S = 60.0
PAUSE_S = 2.5
INNER = ("engine", "tokenizer", "detokenizer", "nats")
WATCHERS = ("prometheus", "nats-exporter")  # of the profile observability; for Grafana there is no stand-in
TRACES_S = 15.0
SCRAPES_S = 40.0  # Prometheus looks every 15 s


@dataclass
class Compose:
    """One project on the Docker engine. Settings travel as the user's would: in the environment."""

    port: int
    traces_port: int
    prometheus_port: int
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        ports = {
            "MILLRACE_PORT": str(self.port),
            "MILLRACE_TEST_TRACES": str(self.traces_port),
            "MILLRACE_PROMETHEUS_PORT": str(self.prometheus_port),
        }
        self.env = {**os.environ, **ports, "DOCKER_BUILDKIT": "0"}
        tool = ["docker-compose"] if _has("docker-compose") else ["docker", "compose"]
        self._command = [*tool, "-p", PROJECT, *(part for file in FILES for part in ("-f", file))]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __call__(self, *args: str, quiet: bool = False) -> str:
        done = subprocess.run(
            [*self._command, *args], cwd=ROOT, env=self.env, text=True, capture_output=True, check=False
        )
        if done.returncode and not quiet:
            raise SystemExit(f"{' '.join(args)}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    async def do(self, *args: str) -> str:
        return await asyncio.to_thread(self, *args)

    def containers(self, service: str) -> list[dict[str, Any]]:
        ids = self("ps", "-q", service).split()
        if not ids:
            return []
        said = subprocess.run(["docker", "inspect", *ids], check=True, capture_output=True).stdout
        return [each for each in json.loads(said) if each["State"]["Running"]]

    async def well(self, service: str, count: int) -> None:
        """As many containers of the service say that they are healthy."""
        async with asyncio.timeout(HANG_S):
            while True:
                found = await asyncio.to_thread(self.containers, service)
                if sum(each["State"]["Health"]["Status"] == "healthy" for each in found) == count:
                    return
                await asyncio.sleep(0.3)


def _has(program: str) -> bool:
    return subprocess.run(["which", program], capture_output=True, check=False).returncode == 0


Deed = Callable[[dict[str, Any]], Awaitable[object]]
"""What happens, to one container of a service: it is looked up before the streams begin."""


class Drive:
    def __init__(self, compose: Compose, wishes: list[Wish]):
        self._compose = compose
        self._wishes = wishes
        self.bad = 0
        self.traces: dict[str, str] = {}  # of the requests so far: what was done meanwhile

    async def under(self, name: str, service: str, deed: Deed) -> None:
        """The deed in the midst of twenty streams, each of which has to come out as if it had not been."""
        victim = (await asyncio.to_thread(self._compose.containers, service))[0]
        answers = [Answer(0.0) for _ in range(STREAMS)]
        wishes = [self._wishes[i % len(self._wishes)] for i in range(STREAMS)]
        begun = asyncio.Event()
        tasks = [
            asyncio.create_task(ask(self._compose.url, wish.body, answer=answer, news=begun.set))
            for wish, answer in zip(wishes, answers, strict=True)
        ]
        await asyncio.wait_for(begun.wait(), HANG_S)
        began = time.monotonic()
        await deed(victim)
        took = time.monotonic() - began
        await asyncio.wait(tasks, timeout=HANG_S)
        hit = sum(1 for answer in answers if answer.times and answer.times[-1] > began)
        wrong = [] if hit else ["nothing was hit: all streams had ended"]
        for number, (task, wish, answer) in enumerate(zip(tasks, wishes, answers, strict=True)):
            said = "hangs" if not task.done() else answer.failure or wish.differs(answer)
            if said:
                wrong.append(f"stream {number + 1}: {said}")
            task.cancel()
        self.traces |= {answer.headers["x-trace-id"]: name for answer in answers if answer.headers}
        self.bad += len(wrong)
        worst = max(max(answer.gaps, default=0.0) for answer in answers)
        print(
            f"{name:32} {hit:2} streams hit, {len(wrong)} bad, worst gap {worst:5.2f} s, deed {took:5.1f} s"
        )
        for line in wrong[:5]:
            print(f"    {line}")
        sys.stdout.flush()


async def kill(victim: dict[str, Any]) -> None:
    """From outside, as an out-of-memory kill is: Docker starts it again by its restart policy."""
    os.kill(victim["State"]["Pid"], signal.SIGKILL)


async def pause(victim: dict[str, Any]) -> None:
    await _docker("pause", victim["Id"])
    await asyncio.sleep(PAUSE_S)
    await _docker("unpause", victim["Id"])


async def _docker(verb: str, container: str) -> None:
    await asyncio.to_thread(subprocess.run, ["docker", verb, container], check=True, capture_output=True)


async def nothing(_: dict[str, Any]) -> None:
    pass


async def traced(compose: Compose, asked: dict[str, str]) -> int:
    """How many of these requests have no whole trace at the receiver. The last ones are on their way."""
    end = time.monotonic() + TRACES_S
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{compose.traces_port}") as http:
        while True:
            found = by_trace((await http.get("/traces")).json())
            if set(asked) <= set(found) or time.monotonic() > end:
                break
            await asyncio.sleep(0.3)
    bad = poorer = 0
    for trace, meanwhile in asked.items():
        spans = found.get(trace, [])
        disturbed = meanwhile.startswith(("kill", "pause", "restart"))
        if wrong := ailments(spans, undisturbed=not disturbed):
            bad += 1
            print(f"trace {trace}, {meanwhile}: {'; '.join(wrong)}")
        poorer += disturbed and bool(ailments(spans, undisturbed=True))
    again = sum(attempts(found[trace]) > 1 for trace in asked if trace in found)
    print(f"{len(asked) - bad} of {len(asked)} traces whole, {again} of them with a fail-over, linked")
    print(f"{poorer} lack a hop that its process or NATS took with it")
    if not again:
        print("no request had to go on elsewhere: nothing was tried")
        bad += 1
    return bad


async def scraped(compose: Compose) -> int:
    """How many queries of the dashboards and alerts get no data from the Prometheus that watched all this. A
    rate takes two looks at the same gateway, and the last one has only just come."""
    queries = {"both targets": "count(up == 1) == 2", **drawn(), **alerts()}
    end = time.monotonic() + SCRAPES_S
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{compose.prometheus_port}") as http:
        while True:
            empty = [each for place, query in queries.items() if (each := await _empty(http, place, query))]
            if not empty or time.monotonic() > end:
                break
            await asyncio.sleep(1)
    print(
        "\n".join([*empty, f"{len(queries) - len(empty)} of {len(queries)} queries get data from Prometheus"])
    )
    return len(empty)


async def _empty(http: httpx.AsyncClient, place: str, query: str) -> str:
    asked = {"query": query.replace("$__rate_interval", "1m")}
    reply = await http.get("/api/v1/query", params=asked)
    if reply.status_code == 200 and reply.json()["data"]["result"]:
        return ""
    return f"{place}: no data: {reply.text[:200]}"


async def sdk(url: str, model: str) -> None:
    """What the README promises, with the real client."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        asked: Any = {"model": model, "messages": [{"role": "user", "content": "hello"}], "seed": 1}
        whole = await client.chat.completions.create(**asked, max_tokens=40)
        stream = await client.chat.completions.create(**asked, max_tokens=40, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content, (text, whole)


async def drive(compose: Compose, model: str) -> int:
    for service in ("gateway", *INNER):
        await compose.well(service, 1)
    await sdk(compose.url, model)
    print("the OpenAI SDK is answered, streaming and not")
    held = Drive(compose, await recorded(compose.url, model))

    def order(*args: str) -> Deed:
        return lambda _: compose.do(*args)

    await held.under("scale engine 1 to 3", "engine", order("up", "-d", "--scale", "engine=3"))
    await compose.well("engine", 3)
    for service in INNER:
        await held.under(f"kill -9 {service}", service, kill)
        await compose.well(service, 3 if service == "engine" else 1)
    for service in INNER:
        await held.under(f"pause {service} {PAUSE_S:g} s", service, pause)
    for service in (*INNER, "gateway"):
        await held.under(f"restart {service}", service, order("restart", service))
        await compose.well(service, 3 if service == "engine" else 1)
    await held.under("scale engine 3 to 1", "engine", order("up", "-d", "--scale", "engine=1"))
    await sdk(compose.url, model)
    await held.under("nothing", "gateway", nothing)
    held.bad += await traced(compose, held.traces)
    held.bad += await scraped(compose)
    print("0 failed or changed streams" if not held.bad else f"{held.bad} streams failed or changed")
    return 1 if held.bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make compose-test")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--traces-port", type=int, default=18081)
    parser.add_argument("--prometheus-port", type=int, default=18082)
    parser.add_argument("--model", default="sim")
    parser.add_argument("--keep", action="store_true", help="leave it running")
    given = parser.parse_args()
    compose = Compose(given.port, given.traces_port, given.prometheus_port)
    compose.env["MILLRACE_MODEL"] = given.model
    print("building the images and starting the service: a few minutes, the first time", flush=True)
    try:
        compose("up", "-d", "--build")
        compose("up", "-d", "--build", *WATCHERS)
        return asyncio.run(drive(compose, given.model))
    finally:
        if not given.keep:
            compose("--profile", "observability", "down", "-v", "--timeout", "5", quiet=True)


if __name__ == "__main__":
    sys.exit(main())
