"""`make chaos`: every fault, as often as asked, and one table."""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.chaos import table
from tests.chaos.faults import FAR, FAULTS, IN_A_CLUSTER, Fault
from tests.chaos.site import Shape, opened
from tests.chaos.trial import Outcome, Scene


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=3, help="of every fault")
    parser.add_argument("--only", metavar="TEXT", action="append", help="faults whose name has this in it")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results here too")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims that are chosen")
    parser.add_argument("--model", default="sim", help="the model to serve")
    parser.add_argument("--device", default="cpu", help="where a real model is computed")
    parser.add_argument("--cluster", action="store_true", help="what a cluster of three nats-servers suffers")
    parser.add_argument("--far", action="store_true", help="what engines behind a leaf node, or far, suffer")
    args = parser.parse_args()
    faults = IN_A_CLUSTER if args.cluster else FAR if args.far else FAULTS
    faults = [f for f in faults if not args.only or any(text in f.name for text in args.only)]
    env = {"MILLRACE_DEVICE": args.device}
    outcomes = asyncio.run(run(faults, args.trials, args.seed, env, model=args.model))
    records = [table.record(fault, outcomes[fault.name]) for fault in faults]
    print(table.table(records))
    if args.json:
        args.json.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n")
    return 1 if any(outcome.bad for outcome in outcomes.values()) else 0


async def run(
    faults: Iterable[Fault],
    trials: int,
    seed: int = 0,
    env: Mapping[str, str] | None = None,
    model: str = "sim",
) -> dict[str, Outcome]:
    """Faults that need a service of the same shape share it."""
    outcomes = {fault.name: Outcome() for fault in faults}
    shapes: dict[Shape, list[Fault]] = {}
    for fault in faults:
        shapes.setdefault(fault.shape, []).append(fault)
    for shape, group in shapes.items():
        async with opened(shape, {"MILLRACE_MODEL": model, **(env or {})}) as site:
            for fault in group:
                missing = "only with the simulated model" if fault.simulated and model != "sim" else ""
                if missing := missing or site.missing:
                    outcomes[fault.name].skipped = missing
                    continue
                for number in range(trials):
                    began = time.monotonic()
                    chance = random.Random(f"{seed} {fault.name} {number}")
                    outcome = await fault.trial(Scene(site, chance))
                    if left := await site.settle():
                        outcome.failures.append(left)
                    outcomes[fault.name].add(outcome)
                    _tell(fault, number, outcome, time.monotonic() - began)
    return outcomes


def _tell(fault: Fault, number: int, outcome: Outcome, took: float) -> None:
    stalls = table.beyond(outcome)
    longest = f"{max(stalls) * 1000:.0f} ms" if stalls else "-"
    wrong = [*outcome.mismatches, *outcome.hangs, *outcome.failures]
    said = f"{fault.name} #{number + 1}: {took:.1f} s, longest stall {longest}"
    print(said, *wrong, sep="\n    ", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
