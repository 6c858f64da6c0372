"""Three times the work there is room for: refused at once and politely, and over as soon as it ends."""

import asyncio
import random
import time
from collections import Counter
from statistics import median
from typing import Any

from bench import table
from bench.load import Heard, ask, completion
from bench.site import Site, site

SLOTS = 16
STEP_MS = 10.0
TOKENS = 50
QUEUE = SLOTS + 32
"""What waits is worth one second of work: an answer that begins later is one that nobody waits for."""

FACTOR = 3.0
RAMP_S = 2.0
"""The first answers need as long to be whole; goodput is counted after that."""

PROMPT = list(range(5, 37))


async def measure(seconds: float) -> None:
    settings: dict[str, Any] = {
        "slots": SLOTS,
        "queue": QUEUE,
        "sim_step_ms": STEP_MS,
        "sim_row_ms": 0,
        "sim_eos": 0,
    }
    async with site(**settings) as service:
        before = service.memory()
        calm = await _first_tokens(service, 10)
        full = await _saturate(service, max(5.0, seconds / 4))
        began = time.monotonic()
        streams, during = await _pour(service, FACTOR * full, seconds)
        elapsed = time.monotonic() - began
        recovery, first = await _recover(service, 4 * max(calm))
        await asyncio.wait([stream.over for stream in streams], timeout=30)
        await asyncio.sleep(1.0)
        after = service.memory()
    statuses = Counter(stream.status for stream in streams)
    good = [s for s in streams if s.status == 200 and s.whole and s.tokens == TOKENS]
    span = (began + RAMP_S) * 1e9, (began + elapsed) * 1e9
    goodput = sum(span[0] <= s.events[-1].at_ns < span[1] for s in good) / (elapsed - RAMP_S)
    broken = [s for s in streams if s.status == 200 and not (s.whole and s.tokens == TOKENS)]
    refused = [s for s in streams if s.status == 429]
    without = sum("retry-after" not in s.headers for s in refused)
    table.show(
        f"Overload: {FACTOR:g} times capacity for {elapsed:.0f} s, Poisson arrivals",
        [
            "saturation req/s",
            "offered req/s",
            "goodput req/s",
            "of saturation",
            "200",
            "429",
            "other",
            "broken 200",
        ],
        [
            [
                full,
                len(streams) / elapsed,
                goodput,
                f"{goodput / full:.1%}",
                statuses[200],
                statuses[429],
                len(streams) - statuses[200] - statuses[429],
                len(broken),
            ]
        ],
        f"{without} of the 429 came without Retry-After. A request is {len(PROMPT)} tokens in, {TOKENS} out; "
        f"{SLOTS} slots, {QUEUE} places in the queue, {STEP_MS:g} ms steps.",
    )
    answered = [s.first_token_s for s in good]
    turned = [(s.reads[0][0] - s.asked_ns) / 1e6 for s in refused]
    table.show(
        "Overload: seconds to the first token",
        [
            "calm p50",
            "overload p50",
            "overload p99",
            "429 after, ms p50",
            "p99",
            "normal again after s",
            "then p50",
        ],
        [
            [
                f"{median(calm):.3f}",
                *(f"{table.quantile(answered, q):.3f}" for q in (0.5, 0.99)),
                *(table.quantile(turned, q) for q in (0.5, 0.99)),
                f"{recovery:.2f}",
                f"{first:.3f}",
            ]
        ],
        "Normal again: the time from the last arrival until a new request has its first token within four "
        "times the slowest calm one.",
    )
    table.show(
        "Overload: memory, MiB",
        ["", "before", "during", "peak", "after"],
        [
            [name, *(table.mib(x) for x in (b.now, during[name], after[name].peak, after[name].now))]
            for name, b in before.items()
        ],
    )


async def _first_tokens(service: Site, count: int) -> list[float]:
    """Of single requests, one after another."""
    took = []
    for n in range(count):
        heard = await ask(service.port, completion(4, seed=n, prompt=PROMPT))
        await heard.over
        took.append(heard.first_token_s)
    return took


async def _saturate(service: Site, seconds: float) -> float:
    """Answers a second while the queue is kept full but never over."""
    ended = 0
    end = time.monotonic() + seconds + 1.0

    async def again(seed: int) -> None:
        nonlocal ended
        while time.monotonic() < end:
            heard = await ask(service.port, completion(TOKENS, seed=seed, prompt=PROMPT))
            await heard.over
            ended += heard.whole

    clients = [asyncio.create_task(again(n)) for n in range(2 * SLOTS)]
    await asyncio.sleep(1.0)
    began, counted = time.monotonic(), ended
    await asyncio.sleep(seconds)
    rate = (ended - counted) / (time.monotonic() - began)
    await asyncio.gather(*clients)
    return rate


async def _pour(service: Site, rate: float, seconds: float) -> tuple[list[Heard], dict[str, int]]:
    """Arrivals that do not wait for answers; and each process's memory half way."""
    asking: list[asyncio.Task[Heard]] = []
    began = time.monotonic()
    due = began
    middle: dict[str, int] = {}
    while (due := due + random.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        asking.append(
            asyncio.create_task(ask(service.port, completion(TOKENS, seed=len(asking), prompt=PROMPT)))
        )
        if not middle and due > began + seconds / 2:
            middle = {name: m.now for name, m in service.memory().items()}
    return [await each for each in asking], middle


async def _recover(service: Site, normal: float) -> tuple[float, float]:
    """Seconds until a first token comes as it did in calm, and how long it takes from then on."""
    began = time.monotonic()
    while True:
        asked = time.monotonic() - began
        (took,) = await _first_tokens(service, 1)
        if took <= normal:
            break
        await asyncio.sleep(0.02)
    return asked, median(await _first_tokens(service, 10))
