"""What a token costs on its way from an engine to a client."""

import asyncio
import os
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from bench import inside, table
from bench.cpu import Reading
from bench.hops import follow
from bench.landed import Landed, ahead_ns, steady
from bench.load import completion
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
        hops += hop
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
            "within",
        ],
        costs,
        "Medians of three windows. `engine` is without what its thread of steps took for them. `others`: "
        f"tokenizer and supervisor, idle here. `of the machine`: the sum's share of {os.cpu_count()} cores. "
        "`within`: the engine without a pipeline, and whoever waits for its tokens in the same process.",
    )
    table.show(
        "The bus: from the end of the engine's step to the client, milliseconds",
        ["batch", "", "tokens/s", "tokens", "p50", "p90", "p99", "max", "lost", "added"],
        hops,
        "`added` is what it takes more than within the engine's own process. The aim is for the client's "
        "socket: there the pipeline ends. When it is read is the client's own affair: here one process, in "
        "Python, wakes up and has all the connections to read in turn.",
    )


async def _batch(batch: int, seconds: float) -> tuple[list[list[table.Cell]], list[list[table.Cell]]]:
    window = seconds / WINDOWS
    alone = await inside.measure(batch, STEP_MS, window)
    settings: dict[str, Any] = {
        "slots": batch,
        "queue": batch + 8,
        "sim_step_ms": STEP_MS,
        "sim_row_ms": 0,
        "sim_eos": 0,
    }
    async with site(witnesses=1, **settings) as service:
        tokens = int((seconds + 2.0) / (STEP_MS / 1e3))
        streams = [Landed(completion(tokens, seed=n)) for n in range(batch)]
        ahead = ahead_ns()
        for stream in streams:
            await stream.ask(service.port)
        await asyncio.sleep(1.5)
        readings = [service.reading()]
        for _ in range(WINDOWS):
            await asyncio.sleep(window)
            readings.append(service.reading())
        await asyncio.wait([stream.over for stream in streams], timeout=seconds + 30)
        ahead = steady(ahead, ahead_ns())
        notes = await service.notes()
    spans = [_span(a, b, notes) for a, b in pairwise(readings)]
    rows: list[list[table.Cell]] = []
    share = median(span.share for span in spans)
    for which, units, within in (
        ("us/token", [s.a_token for s in spans], alone.step_us / batch),
        ("us/step", [s.a_step for s in spans], alone.step_us),
    ):
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
                within,
            ]
        )
    start, end = readings[0].at_ns, readings[-1].at_ns
    quantiles = (0.5, 0.9, 0.99, 1.0)
    least = [table.quantile(alone.delays, q) * 1e3 for q in quantiles]
    hops: list[list[table.Cell]] = [
        [batch, "within the engine's process", alone.tokens_s, len(alone.delays), *least, 0, ""]
    ]
    for where, heard in (
        ("at the client's socket", [stream.at_socket(ahead) for stream in streams]),
        ("read by the client", streams),
    ):
        journey = follow(notes, heard)
        delays = journey.between(start, end)
        lost = journey.made - journey.heard + len(journey.faults)
        late = [table.quantile(delays, q) * 1e3 for q in quantiles]
        rate = len(delays) / (end - start) * 1e9
        hops.append([batch, where, rate, len(delays), *late, lost, late[0] - least[0]])
    return rows, hops


@dataclass(frozen=True)
class Span:
    a_token: dict[str, float]  # microseconds of each process
    a_step: dict[str, float]
    share: float  # of the machine, the whole pipeline


def _span(before: Reading, after: Reading, notes: list[Note]) -> Span:
    inside = [note for note in notes if before.at_ns <= note.at_ns < after.at_ns]
    steps, tokens = len(inside), sum(len(note.tokens) for note in inside)
    spent = {name: ns / 1e3 for name, ns in after.since(before).items()}
    spent["engine"] -= sum(note.own_ns for note in inside) / 1e3
    cores = os.cpu_count() or 1
    share = sum(spent[name] for name in PIPELINE) * 1e3 / (after.at_ns - before.at_ns) / cores
    return Span(
        {name: us / tokens for name, us in spent.items()},
        {name: us / steps for name, us in spent.items()},
        share,
    )
