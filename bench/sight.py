"""What it costs to see: every request traced, every token counted, at 64 simulated streams.

The services that see and the one that does not run side by side, each with its streams, so that whatever the
machine does meanwhile strikes all alike; and they are started anew for each round. The cost is in processor
time for a token: a machine that is fully used loses so much throughput. The streams are paced, and so their
rate stays the same if nothing is lost.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock

from bench import table
from bench.cpu import Reading
from bench.load import Heard, ask, completion
from bench.site import Site, site
from millrace import messages as m
from millrace.spans import Process, Resource, otlp
from millrace.telemetry import child_of
from services.gateway.journey import Journeys, Stay
from services.gateway.owner.entry import Entry
from services.gateway.owner.tally import Tally
from services.gateway.visit import Visit

STREAMS = 64
STEP_MS = 40.0
TOKENS = 128
ROUNDS = 3
WARM_S = 6.0
"""The first answers all end at the same time; after one more they do not."""

QUIET = {"OTEL_TRACES_SAMPLER": "always_off", "MILLRACE_METRICS": "false", "MILLRACE_STEP_SPANS": "0"}
MODES: dict[str, dict[str, str]] = {
    "nothing": QUIET,
    "traces": {"MILLRACE_METRICS": "false"},
    "metrics": {**QUIET, "MILLRACE_METRICS": "true"},
}


@dataclass(frozen=True)
class Run:
    us: dict[str, float]  # processor time of each process, microseconds a token
    rate: float  # tokens a second

    @property
    def sum(self) -> float:
        return sum(self.us.values())


async def measure(seconds: float) -> None:
    runs: dict[str, list[Run]] = {mode: [] for mode in MODES}
    for turn in range(ROUNDS):
        # The one that is started first has another place in the machine: each comes first once.
        modes = [*list(MODES)[turn % len(MODES) :], *list(MODES)[: turn % len(MODES)]]
        services: dict[str, _Running] = {}
        async with AsyncExitStack() as held:
            for mode in modes:
                services[mode] = await held.enter_async_context(_running(MODES[mode]))
            await asyncio.sleep(WARM_S)
            before = {mode: service.site.reading(client=False) for mode, service in services.items()}
            await asyncio.sleep(seconds / ROUNDS)
            after = {mode: service.site.reading(client=False) for mode, service in services.items()}
            for mode, service in services.items():
                runs[mode].append(await service.end(before[mode], after[mode]))
    rows: list[list[table.Cell]] = []
    base = runs["nothing"]
    for mode, got in runs.items():
        # Round by round: neighbours had the same machine.
        cpu = [run.sum / other.sum - 1 for run, other in zip(got, base, strict=True)]
        rate = [run.rate / other.rate - 1 for run, other in zip(got, base, strict=True)]
        of = [median(run.us[name] for run in got) for name in ("gateway", "engine", "detokenizer")]
        of += [median(run.us["tokenizer"] for run in got), median(run.sum for run in got)]
        spread = f"{min(cpu):+.1%} to {max(cpu):+.1%}"
        rows.append([mode, *of, f"{median(cpu):+.1%}", spread, f"{median(rate):+.1%}"])
    table.show(
        f"Sight: processor time, microseconds a token, at {STREAMS} streams of {TOKENS} tokens each",
        [
            "seen",
            "gateway",
            "engine",
            "detokenizer",
            "tokenizer",
            "sum with nats",
            "cost",
            "by round",
            "tokens/s",
        ],
        rows,
        f"Medians of {ROUNDS} rounds of {seconds / ROUNDS:g} s; `cost` and `tokens/s` against the neighbour "
        "that sees nothing. `traces`: every request's, into the trace file, with engine steps.",
    )
    trace_us, token_us = _alone()
    whole = median(run.sum for run in base)
    table.show(
        "Sight: what is done for it, alone in one process",
        ["", "us", "us a token", "of a token's cost"],
        [
            ["a request's trace", trace_us, trace_us / TOKENS, f"{trace_us / TOKENS / whole:.2%}"],
            ["counting a token", token_us, token_us, f"{token_us / whole:.2%}"],
        ],
        f"A token costs {whole:.0f} us in all processes together, as measured above.",
    )


class _Running:
    """A service with its streams under way."""

    def __init__(self, site: Site):
        self.site = site
        self._going = [asyncio.create_task(_ask_on(site, n)) for n in range(STREAMS)]

    async def end(self, before: Reading, after: Reading) -> Run:
        for task in self._going:
            task.cancel()
        await asyncio.gather(*self._going, return_exceptions=True)
        notes = await self.site.notes()
        tokens = sum(len(note.tokens) for note in notes if before.at_ns <= note.at_ns < after.at_ns)
        spent = after.since(before)
        return Run(
            {name: ns / 1e3 / tokens for name, ns in spent.items() if name != "up"},
            tokens / (after.at_ns - before.at_ns) * 1e9,
        )


@asynccontextmanager
async def _running(env: dict[str, str]) -> AsyncIterator[_Running]:
    settings: dict[str, Any] = {
        "slots": STREAMS,
        "queue": 2 * STREAMS,
        "sim_step_ms": STEP_MS,
        "sim_row_ms": 0,
        "sim_eos": 0,
        "log": "warning",
    }
    with mock.patch.dict(os.environ, env):
        async with site(witnesses=1, **settings, **_settings(env)) as service:
            yield _Running(service)


def _settings(env: dict[str, str]) -> dict[str, str]:
    """`site` takes Millrace's own settings apart from the rest of the environment."""
    prefix = "MILLRACE_"
    return {key.removeprefix(prefix).lower(): value for key, value in env.items() if key.startswith(prefix)}


async def _ask_on(service: Site, seed: int) -> None:
    """One stream after another."""
    stream: Heard | None = None
    try:
        while True:
            stream = await ask(service.port, completion(TOKENS, seed=seed))
            await stream.over
            assert stream.status == 200, stream.status
    finally:
        if stream:
            stream.close()


# -- the same work alone, in this process: what the machine's noise hides in the whole

TIMES = 2000


def _alone() -> tuple[float, float]:
    """Microseconds of processor time: of a request's trace up to the line of the file, and of counting a
    token."""
    journeys = Journeys(Process("gateway", "gateway_1"))
    began = time.process_time()
    for n in range(TIMES):
        otlp(journeys.trace(_stay(journeys, n), 0.0), RESOURCE)
    traced = time.process_time() - began
    tally = Tally()
    began = time.process_time()
    for _ in range(100 * TIMES):
        tally.went_on(1, 0.04)
    return traced / TIMES * 1e6, (time.process_time() - began) / (100 * TIMES) * 1e6


RESOURCE = Resource()


def _stay(journeys: Journeys, number: int) -> Stay:
    """A request with what its hops tell."""
    engine, detokenizer = Process("engine", "engine_1"), Process("detokenizer", "detokenizer_1")
    visit = Visit(traceparent=child_of("", sampled=True), method="POST", route="/v1/completions", status=200)
    journeys.arrived(visit)
    prompt = m.Prompt(f"gateway_1-{number:032x}", 1, "sim", m.Ids([5]), m.Sampling(1))
    trace = child_of(visit.traceparent, sampled=True)
    entry = Entry(prompt, "sim", 1.0, 100.0, traceparent=trace, first_at=1.1, spoken_at=2.0, finish="length")
    journey = journeys.opened(entry, visit.traceparent, 1.0)
    admitting = [
        m.Hop("tokenize", 1.0, 1.1, notes={"tokens": 1}),
        m.Hop("publish", 1.1, 1.2, notes={"seq": 1}),
    ]
    admitted = m.Admitted(entry.request, 1, 1, TOKENS, tokenizer="tokenizer_1", hops=admitting)
    journey.admitted(admitted, 1.2)
    journey.granted(m.Granted(entry.request, 1, [], "detokenizer_1", 100), "engine_1", 1.3)
    notes: dict[str, str | int | float] = {"prompt_tokens": 1, "cached_tokens": 0, "resumed_tokens": 0}
    prefill = m.Hop("prefill", 1.2, 1.4, 1, notes, [m.Mark("chunk", 1.3, 1)])
    journey.told(engine, [m.Hop("claim", 1.2, 1.3, 1), prefill])
    first = m.Mark("first token", 1.4, 1)
    journey.told(engine, [m.Hop("decode", 1.4, 2.0, 1, {"tokens": TOKENS}, [first])])
    journey.told(detokenizer, [m.Hop("detokenize", 1.4, 2.0, 1, {"tokens": TOKENS})])
    journeys.ended(entry.request, 2.0)
    visit.first_at, visit.left_at = 1.4, 2.0
    stay = journeys.left(visit, 2.0)
    assert stay
    journeys.due(9.0)
    return stay
