"""One tenant floods, nine do not: what the nine notice of it, and who gets how much."""

import asyncio
import json
import random
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench import table
from bench.load import Heard, ask, completion
from bench.site import Site, site
from millrace import keys

TENANTS = 10
SLOTS = 16
STEP_MS = 10.0
QUEUE = 32
PROMPT = list(range(5, 37))
LIGHT_PER_S = 0.4
LIGHT_TOKENS = (10, 40)
FLOOD_TOKENS = (20, 100)
"""Of random length, so that slots do not all become free at once."""

FLOOD_PER_S = 80.0
"""Three times what the engine can do."""

CROWD_PER_S = 8.0
"""Of nine tenants; the tenth asks ten times as often. It is six times what the engine can do."""

SETTLE_S = 2.0


async def measure(seconds: float) -> None:
    made = [keys.new(f"t{n}") for n in range(TENANTS)]
    secrets = [key for key, _ in made]
    file = tomllib.loads("[keys]\n" + "\n".join(line for _, line in made))
    with_keys: dict[str, Any] = {"keys": json.dumps(file), "tenant_queue": QUEUE}
    calm, kept = await _phases(secrets, with_keys, seconds)
    crowd = await _crowd(secrets, with_keys, seconds)
    open_calm, open_kept = await _phases([""] * TENANTS, {"queue": QUEUE}, seconds)
    open_crowd = await _crowd([""] * TENANTS, {"queue": QUEUE}, seconds)
    table.show(
        f"Fairness: nine light tenants beside a flood of {FLOOD_PER_S:g} req/s, seconds to the first token",
        ["", "alone p50", "p95", "flooded p50", "p95", "times p50", "p95", "refused", "flood's refused"],
        [
            _row("keys", calm, kept),
            _row("no keys", open_calm, open_kept),
        ],
        f"{SLOTS} slots, {STEP_MS:g} ms steps; {QUEUE} places for each tenant, without keys for all.",
    )
    table.show(
        "Fairness: ten tenants that all ask for more than their part, one of them ten times as often",
        ["", "Jain's index", "chunks/s", "the frequent one's part", "refused"],
        [_shares("keys", *crowd, seconds), _shares("no keys", *open_crowd, seconds)],
        "Jain's index of the chunks of text that each was given while all waited: 1 if all got the same, "
        "0.1 if one got everything.",
    )


async def _phases(
    secrets: Sequence[str], settings: dict[str, Any], seconds: float
) -> tuple[list[list[Heard]], list[list[Heard]]]:
    """The light tenants alone, and then with the flood; the flood comes first in a list."""
    async with _engine(settings) as service:
        lights = [LIGHT_PER_S] * (TENANTS - 1)
        await _ask_on(service, secrets, [0.0, *lights], SETTLE_S)
        return (
            await _ask_on(service, secrets, [0.0, *lights], seconds),
            await _ask_on(service, secrets, [FLOOD_PER_S, *lights], seconds),
        )


async def _crowd(
    secrets: Sequence[str], settings: dict[str, Any], seconds: float
) -> tuple[list[list[Heard]], float]:
    """And when they began."""
    rates = [10 * CROWD_PER_S] + [CROWD_PER_S] * (TENANTS - 1)
    async with _engine(settings) as service:
        began = time.monotonic()
        return await _ask_on(service, secrets, rates, seconds), began


def _engine(settings: dict[str, Any]) -> Any:
    return site(slots=SLOTS, sim_step_ms=STEP_MS, sim_row_ms=0, sim_eos=0, **settings)


async def _ask_on(
    service: Site, secrets: Sequence[str], rates: Sequence[float], seconds: float
) -> list[list[Heard]]:
    """Each tenant's requests, Poisson, when all have ended."""
    began = time.monotonic()

    async def tenant(n: int) -> list[Heard]:
        heard: list[Heard] = []
        due = began
        low, high = FLOOD_TOKENS if rates[n] > LIGHT_PER_S else LIGHT_TOKENS
        while rates[n] and (due := due + random.expovariate(rates[n])) < began + SETTLE_S + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tokens = random.randint(low, high)
            request = completion(tokens, seed=len(heard), prompt=PROMPT, key=secrets[n])
            heard.append(await ask(service.port, request))
        return heard

    asked = await asyncio.gather(*(tenant(n) for n in range(TENANTS)))
    over = [one.over for heard in asked for one in heard]
    if over:
        await asyncio.wait(over, timeout=60)
    return asked


def _row(name: str, calm: list[list[Heard]], flooded: list[list[Heard]]) -> list[table.Cell]:
    before, after = ([one.first_token_s for heard in them[1:] for one in heard] for them in (calm, flooded))
    lights = Counter(one.status for heard in flooded[1:] for one in heard)
    flood = Counter(one.status for one in flooded[0])
    calm50, calm95 = median(before), table.quantile(before, 0.95)
    answered = [value for value in after if value != float("inf")]
    late50, late95 = median(answered), table.quantile(answered, 0.95)
    return [
        name,
        *(f"{value:.3f}" for value in (calm50, calm95, late50, late95)),
        late50 / calm50,
        late95 / calm95,
        f"{lights[429]}/{lights.total()}",
        f"{flood[429]}/{flood.total()}",
    ]


def _shares(name: str, asked: list[list[Heard]], began: float, seconds: float) -> list[table.Cell]:
    span = (began + SETTLE_S) * 1e9, (began + SETTLE_S + seconds) * 1e9
    given = [sum(span[0] <= at < span[1] for one in heard for at, _ in one.texts) for heard in asked]
    statuses = Counter(one.status for heard in asked for one in heard)
    jain = sum(given) ** 2 / (len(given) * sum(value**2 for value in given))
    return [
        name,
        f"{jain:.3f}",
        sum(given) / seconds,
        f"{given[0] / sum(given):.1%}",
        f"{statuses[429]}/{statuses.total()}",
    ]
