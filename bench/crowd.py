"""One gateway, a thousand streams: nothing lost, nothing late."""

import asyncio
import os
import resource
from typing import Any

from bench import table
from bench.hops import follow
from bench.load import ask, completion
from bench.site import site

STREAMS = 1000
ENGINES = 4
STEP_MS = 200.0
LATE_S = 0.1
RAMP_S = 8.0
"""The streams begin one after another over this time."""


async def measure(seconds: float) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the processes inherit it
    settings: dict[str, Any] = {
        "slots": -(-STREAMS // ENGINES),
        "queue": STREAMS + 100,
        "sim_step_ms": STEP_MS,
        "sim_row_ms": 0,
        "sim_eos": 0,
    }
    tokens = int((seconds + RAMP_S + 3.0) / (STEP_MS / 1e3))
    async with site(witnesses=ENGINES, **settings) as service:
        empty = service.memory()
        streams = []
        for n in range(STREAMS):
            streams.append(await ask(service.port, completion(tokens, seed=n)))
            await asyncio.sleep(RAMP_S / STREAMS)
        await asyncio.sleep(2.0)
        before = service.reading()
        await asyncio.sleep(seconds)
        after = service.reading()
        full = service.memory()
        await asyncio.wait([stream.over for stream in streams], timeout=60)
        notes = await service.notes()
    elapsed = after.at_ns - before.at_ns
    journey = follow(notes, streams)
    steady = journey.between(before.at_ns, after.at_ns)
    whole = sum(stream.whole for stream in streams)
    late = sum(delay > LATE_S for _, delay in journey.delays)
    made = sum(len(n.tokens) for n in notes if before.at_ns <= n.at_ns < after.at_ns)
    table.show(
        f"The crowd: {STREAMS} streams on one gateway, {ENGINES} engines, {1e3 / STEP_MS:g} tokens/s each",
        [
            "streams whole",
            "tokens made",
            "lost",
            "faults",
            f"late > {LATE_S * 1e3:g} ms",
            "p50 ms",
            "p99 ms",
            "max ms",
        ],
        [
            [
                f"{whole}/{STREAMS}",
                journey.made,
                journey.made - journey.heard,
                len(journey.faults),
                late,
                *(table.quantile(steady, q) * 1e3 for q in (0.5, 0.99, 1.0)),
            ]
        ],
    )
    spent = after.since(before)
    table.show(
        f"The crowd: each process, at {made / elapsed * 1e9:.0f} tokens/s",
        ["", "of one core", "us/token", "MiB before", "MiB with all", "KiB a stream"],
        [
            [
                name,
                f"{ns / elapsed:.1%}",
                ns / 1e3 / made,
                *(
                    (
                        table.mib(empty[name].now),
                        table.mib(full[name].now),
                        (full[name].now - empty[name].now) / 1024 / STREAMS,
                    )
                    if name in full
                    else ("", "", "")
                ),
            ]
            for name, ns in spent.items()
        ],
        f"The machine has {os.cpu_count()} cores for all of them, the client among them. Engines are "
        "simulated, and keep the notes of this measurement.",
    )
