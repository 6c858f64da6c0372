"""`python -m bench.peer --llama DIR`: Millrace beside llama-server, by HTTP, on the same random weights.

DIR is where llama-server and llama-quantize are, built as docs/bench.md says. All servers run all the
time, and are asked in turn, round after round, so that a disturbance of the machine falls on all of them;
shown are medians, and Millrace's share of the better of the peer's two settings for keys and values. The
engine alone, in this process, has its turn too.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import uvloop

from bench import machine, twins
from bench.alone import Alone
from bench.cpu import share
from bench.load import Heard, ask
from millrace import models, plan
from millrace.up import control
from tests.kit.service import environment, free_port

SLOTS = 16
START_S = 300.0
TOKENS = 128
LONG = 1024
ALONE = "engine alone"


@dataclass
class Server:
    name: str
    process: subprocess.Popen[bytes]
    port: int
    model: str
    started_s: float
    state: Path | None = None

    @property
    def pids(self) -> list[int]:
        if self.state is None:
            return [self.process.pid]
        rows = control.order(self.state, control.Ps(), lambda _: None).rows
        return [self.process.pid, *(row.pid for row in rows)]

    @property
    def memory_mib(self) -> int:
        return sum(share(pid) for pid in self.pids) >> 20

    def request(self, prompt: list[int], tokens: int, seed: int) -> bytes:
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        body |= {"temperature": 1.0, "seed": seed, "stream": True}
        raw = msgspec.json.encode(body)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n"
        return head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw


@dataclass
class Case:
    """One thing measured: of each server, a value a round."""

    name: str
    unit: str
    more_is_better: bool
    target: float = 0.0  # what share of the peer's better setting it is to reach, or to stay below
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, server: str, value: float) -> None:
        self.values.setdefault(server, []).append(value)

    def row(self, servers: list[str]) -> str:
        middle = {name: statistics.median(self.values[name]) for name in servers if name in self.values}
        ours, peers = middle[servers[0]], [middle[name] for name in servers[1:] if name in middle]
        share = ours / (max(peers) if self.more_is_better else min(peers)) if peers else 0
        wanted = f"{'>=' if self.more_is_better else '<='} {self.target:g}" if self.target else ""
        cells = [f"{middle[name]:.4g}" if name in middle else "" for name in servers]
        cells += [f"{share:.2f}x", wanted]
        if alone := self.values.get(ALONE):
            # Of each round by itself: the machine is not the same in the next.
            of_it = statistics.median(a / b for a, b in zip(self.values[servers[0]], alone, strict=True))
            cells += [f"{statistics.median(alone):.4g}", f"{of_it:.2f}x"]
        else:
            cells += ["", ""]
        return f"| {self.name} ({self.unit}) | {' | '.join(cells)} |"


class Prompts:
    """Never the same twice: no server finds any of it in a cache, unless it is meant to."""

    def __init__(self) -> None:
        self._chance = random.Random(0)
        self.seed = 0

    def __call__(self, length: int) -> list[int]:
        self.seed += 1
        return [self._chance.randrange(300, 4000) for _ in range(length)]


async def heard(server: Server, prompts: list[list[int]], tokens: int, seed: int) -> list[Heard]:
    asked = [
        await ask(server.port, server.request(prompt, tokens, seed + i)) for i, prompt in enumerate(prompts)
    ]
    await asyncio.wait([one.over for one in asked])
    for one in asked:
        if one.status != 200 or not one.whole:
            raise RuntimeError(f"{server.name} failed: {one.status} {one._bytes[-300:]!r}")
    return asked


def times(one: Heard) -> list[int]:
    return [at for at, _ in one.texts]


def gaps_ms(answers: list[Heard]) -> list[float]:
    return sorted((b - a) / 1e6 for one in answers for a, b in itertools.pairwise(times(one)))


class Round:
    """The cases, run once on each server in turn."""

    def __init__(self, servers: list[Server], alone: Alone, cases: dict[str, Case]):
        self._servers = servers
        self._alone = alone
        self._cases = cases
        self._prompts = Prompts()

    def _add(
        self, server: Server, name: str, unit: str, value: float, *, more: bool = False, target: float = 0
    ) -> None:
        self._cases.setdefault(name, Case(name, unit, more, target)).add(server.name, value)

    async def streams(self, count: int, length: int, target: float) -> None:
        prompts = [self._prompts(length) for _ in range(count)]
        tokens = TOKENS
        for server in self._servers:
            answers = await heard(server, prompts, tokens, self._prompts.seed)
            first = min(one.asked_ns for one in answers)
            took = (max(times(one)[-1] for one in answers) - first) / 1e9
            gaps = gaps_ms(answers)
            about = f"{count} x {length} in, {tokens} out"
            self._add(server, f"output, {about}", "tokens/s", count * tokens / took, more=True, target=target)
            first_ms = statistics.median((times(one)[0] - one.asked_ns) / 1e6 for one in answers)
            self._add(server, f"first token, {about}", "ms", first_ms)
            self._add(server, f"between tokens p50, {about}", "ms", gaps[len(gaps) // 2])
            self._add(server, f"between tokens p99, {about}", "ms", gaps[int(len(gaps) * 0.99)])
        took, gap = await asyncio.to_thread(self._alone.heard, prompts, tokens, self._prompts.seed)
        self._cases[f"output, {about}"].add(ALONE, count * tokens / took)
        self._cases[f"between tokens p50, {about}"].add(ALONE, gap * 1e3)

    async def prefill(self, length: int, target: float) -> None:
        prompt = self._prompts(length)
        for server in self._servers:
            (one,) = await heard(server, [prompt], 4, self._prompts.seed)
            rate = length / ((times(one)[0] - one.asked_ns) / 1e9)
            self._add(server, f"prefill of {length}", "tokens/s", rate, more=True, target=target)

    async def warm(self) -> None:
        """The second time, with another end: what a next turn of a conversation is."""
        prompt = self._prompts(LONG)
        for server in self._servers:
            (cold,) = await heard(server, [prompt], 4, 1)
            (again,) = await heard(server, [[*prompt, 301, 302, 303]], 4, 1)
            shares = [(times(one)[0] - one.asked_ns) / 1e6 for one in (cold, again)]
            self._add(
                server,
                f"first token of a warm {LONG}-token prefix, share of cold",
                "x",
                shares[1] / shares[0],
            )

    async def joins(self) -> None:
        """A prompt of 512 tokens comes to seven streams."""
        prompts = [self._prompts(64) for _ in range(7)]
        late = self._prompts(512)
        for server in self._servers:
            asked = [
                await ask(server.port, server.request(prompt, 160, i)) for i, prompt in enumerate(prompts)
            ]
            while any(len(one.reads) < 24 for one in asked):
                await asyncio.sleep(0.01)
            joined = await ask(server.port, server.request(late, 4, 9))
            await asyncio.wait([one.over for one in (*asked, joined)])
            worst = max(
                (b - a) / 1e6
                for one in asked
                for a, b in itertools.pairwise(times(one))
                if b > joined.asked_ns
            )
            self._add(server, "worst gap of 7 when 512 tokens join", "ms", worst, target=0.25)
            first = (times(joined)[0] - joined.asked_ns) / 1e6
            self._add(server, "first token of the 512 that join 7", "ms", first)

    async def run(self, counts: list[int], prefill: float) -> None:
        target = {1: 1.0, 4: 1.3, 8: 1.5, 16: 1.5}
        for count in counts:
            await self.streams(count, 128, target.get(count, 0))
        for count in {1, 4} & set(counts):
            await self.streams(count, LONG, 0)
        for length in (128, 512, LONG):
            await self.prefill(length, prefill if length < LONG else 0)
        await self.warm()
        await self.joins()


@contextlib.asynccontextmanager
async def millrace(
    name: str, folder: Path, work: Path, max_len: int, slots: int = SLOTS, **settings: str
) -> AsyncIterator[Server]:
    state = work / f"state-{name}"
    state.mkdir(exist_ok=True)
    port = free_port()
    command: list[object] = [
        sys.executable,
        "-P",
        "-m",
        "millrace",
        "up",
        "--plain",
        "--model",
        folder,
        "--port",
        str(port),
    ]
    command += ["--state-dir", state, "--slots", str(slots), "--max-len", str(max_len)]
    # ONNX Runtime for a GPU may lie there.
    path = os.environ.get("PYTHONPATH", "")
    env = environment({"XDG_CACHE_HOME": str(work), "PYTHONPATH": path, **settings})
    async with _running(name, command, port, folder.name, env, state / "out", "/readyz", state) as server:
        yield server


@contextlib.asynccontextmanager
async def llama(
    name: str, binary: Path, file: Path, work: Path, max_len: int, kv: str
) -> AsyncIterator[Server]:
    port = free_port()
    threads = str(len(os.sched_getaffinity(0)))
    command: list[object] = [
        binary,
        "-m",
        file,
        "--port",
        str(port),
        "-t",
        threads,
        "-tb",
        threads,
        "-np",
        str(SLOTS),
    ]
    command += ["-c", str(SLOTS * max_len), "-fa", "on", "-ctk", kv, "-ctv", kv, "--no-webui"]
    async with _running(
        name, command, port, "x", dict(os.environ), work / f"{name}.log", "/health", None
    ) as server:
        yield server


@contextlib.asynccontextmanager
async def _running(
    name: str,
    command: list[object],
    port: int,
    model: str,
    env: dict[str, str],
    log: Path,
    ready: str,
    state: Path | None,
) -> AsyncIterator[Server]:
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen([*map(str, command)], stdout=out, stderr=out, env=env)
    try:
        while not await asyncio.to_thread(_answers, f"http://127.0.0.1:{port}{ready}"):
            if process.poll() is not None or time.monotonic() - began > START_S:
                raise RuntimeError(f"{name} did not start: {log.read_text()[-2000:]}")
            await asyncio.sleep(0.02)
        yield Server(name, process, port, model, time.monotonic() - began, state)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


async def measure(args: argparse.Namespace, work: Path, shape: str, quant: str) -> dict[str, Case]:
    folder = twins.ours(work, shape, quant)
    file = twins.theirs(work, shape, quant, args.llama / "llama-quantize")
    max_len = LONG + 256
    cases: dict[str, Case] = {}
    async with contextlib.AsyncExitStack() as held:
        # Once before, so that what is made once a machine is not counted as starting.
        async with millrace("first", folder, work, max_len):
            pass
        servers = [
            await held.enter_async_context(
                millrace(
                    "millrace",
                    folder,
                    work,
                    max_len,
                    MILLRACE_SPECULATE=str(args.speculate).lower(),
                    MILLRACE_FAST=str(args.fast).lower(),
                )
            )
        ]
        for kv in ("f16", "q8_0"):
            started = llama(f"llama.cpp {kv}", args.llama / "llama-server", file, work, max_len, kv)
            servers.append(await held.enter_async_context(started))
        names = [server.name for server in servers]
        alone = Alone(folder, work / "millrace", SLOTS, max_len)
        rounds = Round(servers, alone, cases)
        await rounds.streams(SLOTS, 128, 0)
        cases.clear()  # the first steps meet cold pages, on all sides
        for done in range(1, args.rounds + 1):
            await rounds.run(args.streams, 1.3 if args.fast else 1.0)
            print(f"{shape} {quant}: round {done} of {args.rounds}", file=sys.stderr, flush=True)
        print(f"\n### {shape} {quant}, {args.rounds} rounds\n")
        memory = plan.bandwidth(4 * plan.PROBE_BYTES) / 1e9
        print(f"memory reads {memory:.1f} GB/s; load {os.getloadavg()[0]:.1f}\n")
        heads = [*names, "share of the better", "target", ALONE, "share of it"]
        print(f"| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
        for case in cases.values():
            print(case.row(names))
        tell: list[tuple[str, Callable[[Server], str]]] = [
            ("memory (MiB)", lambda server: str(server.memory_mib)),
            ("start (s)", lambda server: f"{server.started_s:.1f}"),
        ]
        for name, say in tell:
            print(f"| {name} | {' | '.join(map(say, servers))} | | | | |")
        if single := [case for name, case in cases.items() if name.startswith("between tokens p50, 1 x")]:
            read = plan.needs(models.find(str(folder))).read / 1e9
            rate = read / statistics.median(single[0].values[ALONE]) * 1e3
            print(f"\nThe engine alone, one stream: {rate:.1f} GB/s of weights, {rate / memory:.0%} of that")
    return cases


async def compare(args: argparse.Namespace, work: Path) -> None:
    print(machine.describe())
    values = {}
    for shape, quant in itertools.product(args.shape, args.quant):
        cases = await measure(args, work, shape, quant)
        values[f"{shape} {quant}"] = {name: case.values for name, case in cases.items()}
        if args.json:
            args.json.write_text(json.dumps(values, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peer", description=__doc__)
    parser.add_argument(
        "--llama", type=Path, required=True, help="the folder with llama-server and llama-quantize"
    )
    parser.add_argument("--shape", nargs="+", choices=twins.SHAPES, default=["135m", "0.6b"])
    parser.add_argument("--quant", nargs="+", choices=twins.PEER, default=["int8"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--speculate", action="store_true", help="let Millrace guess ahead")
    parser.add_argument("--fast", action="store_true", help="let Millrace prefill in its fast mode")
    parser.add_argument("--work", type=Path, help="where to keep what is made (default: nowhere)")
    parser.add_argument("--json", type=Path, help="write every value here too")
    args = parser.parse_args()
    # Stopped from outside, too, it leaves no server behind.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).absolute()
        work.mkdir(exist_ok=True)
        uvloop.run(compare(args, work))
    return 0


if __name__ == "__main__":
    sys.exit(main())
