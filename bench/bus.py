"""What a token costs on its way from an engine to a client."""

import asyncio
import os
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from bench import inline, table
from bench.cpu import Reading
from bench.hops import follow
from bench.load import ask, completion
from bench.site import site
from bench.witness import Note

STEP_MS = 20.0
BATCHES = (1, 8, 16, 64)
WINDOWS = 3
PIPELINE = ("engine", "nats", "detokenizer", "gateway", "tokenizer", "up")


async def measure(seconds: float) -> None:
    costs, hops = [], []
    for batch in BATCHES:
        cost, hop = await _batch(batch, seconds)
        costs += cost
        hops.append(hop)
    table.show(
        f"The bus: processor time, microseconds a token and a step ({STEP_MS:g} ms steps)",
        [
            "batch",
            "",
            "engine",
            "nats",
            "detokenizer",
            "gateway",
            "others",
            "sum",
            "of the machine",
            "client",
        ],
        costs,
        "Medians of three windows. `engine` is net of what the same steps cost in-process. `others`: "
        f"tokenizer and supervisor, idle here. `of the machine`: the sum's share of {os.cpu_count()} cores.",
    )
    table.show(
        "The bus: from the end of the engine's step to the client's read, milliseconds",
        ["batch", "tokens/s", "tokens", "p50", "p90", "p99", "max", "lost"],
        hops,
    )


async def _batch(batch: int, seconds: float) -> tuple[list[list[table.Cell]], list[table.Cell]]:
    own = await inline.step_cpu_ns(batch, min(seconds, 4.0), STEP_MS) / 1e3
    window = seconds / WINDOWS
    settings: dict[str, Any] = {
        "slots": batch,
        "queue": batch + 8,
        "sim_step_ms": STEP_MS,
        "sim_row_ms": 0,
        "sim_eos": 0,
    }
    async with site(witnesses=1, **settings) as service:
        tokens = int((seconds + 2.0) / (STEP_MS / 1e3))
        streams = [await ask(service.port, completion(tokens, seed=n)) for n in range(batch)]
        await asyncio.sleep(1.5)
        readings = [service.reading()]
        for _ in range(WINDOWS):
            await asyncio.sleep(window)
            readings.append(service.reading())
        await asyncio.wait([stream.over for stream in streams], timeout=seconds + 30)
        notes = await service.notes()
    journey = follow(notes, streams)
    steady = journey.between(readings[0].at_ns, readings[-1].at_ns)
    spans = [_span(a, b, notes, own) for a, b in pairwise(readings)]
    rows: list[list[table.Cell]] = []
    share = median(span.share for span in spans)
    for which, units in (("us/token", [s.a_token for s in spans]), ("us/step", [s.a_step for s in spans])):
        spent = {name: median(each[name] for each in units) for name in units[0]}
        rows.append(
            [
                batch,
                which,
                *(spent[name] for name in PIPELINE[:4]),
                spent["tokenizer"] + spent["up"],
                sum(spent[name] for name in PIPELINE),
                f"{share:.1%}",
                spent["client"],
            ]
        )
    elapsed = (readings[-1].at_ns - readings[0].at_ns) / 1e9
    lost = journey.made - journey.heard + len(journey.faults)
    delays = [table.quantile(steady, q) * 1e3 for q in (0.5, 0.9, 0.99, 1.0)]
    return rows, [batch, len(steady) / elapsed, len(steady), *delays, lost]


@dataclass(frozen=True)
class Span:
    a_token: dict[str, float]  # microseconds of each process
    a_step: dict[str, float]
    share: float  # of the machine, the whole pipeline


def _span(before: Reading, after: Reading, notes: list[Note], own_us: float) -> Span:
    inside = [note for note in notes if before.at_ns <= note.at_ns < after.at_ns]
    steps, tokens = len(inside), sum(len(note.tokens) for note in inside)
    spent = {name: ns / 1e3 for name, ns in after.since(before).items()}
    spent["engine"] -= own_us * steps
    cores = os.cpu_count() or 1
    share = sum(spent[name] for name in PIPELINE) * 1e3 / (after.at_ns - before.at_ns) / cores
    return Span(
        {name: us / tokens for name, us in spent.items()},
        {name: us / steps for name, us in spent.items()},
        share,
    )
