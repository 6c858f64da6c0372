"""`python -m bench.engine [FOLDER]`: the engine without a pipeline, decoding and prefilling, in this process.

Without a folder, random weights of a real shape are written, converted and prepared below --work. Cases
are run in turn, round after round, so that a disturbance of the machine falls on all of them; shown are
the median and the best round.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench import machine, twins
from millrace import models, possible, settings
from millrace.messages import Sampling
from services.engine.choice.sample import choose
from services.engine.model import prepare
from services.engine.model.session import OrtModel
from services.engine.steps.scheduler import Chunk, Step
from services.engine.steps.sequence import Sequence

BATCHES = (1, 2, 4, 8, 16)
PROMPTS = (128, 512, 1024)
CHUNK = settings.Engine().chunk


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("folder", nargs="?", help="a model; without one, random weights of --shape")
    parser.add_argument("--shape", choices=twins.SHAPES, default="135m")
    parser.add_argument("--quant", choices=("int8", "int4", "fp32"), default="int8")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--spin-us", type=int, default=settings.Engine().spin_us)
    parser.add_argument("--fast", action="store_true", help="prefill in fast mode, too")
    parser.add_argument("--work", type=Path, help="where to keep what is made (default: nowhere)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        folder = Path(args.folder) if args.folder else twins.ours(work, args.shape, args.quant)
        possible.fast(models.find(str(folder)), settings.Engine(fast=args.fast))
        folder = prepare.converted(models.find(str(folder)), work)
        graphs = prepare.prepared(folder, work)
        fast = prepare.faster(folder, work, graphs) if args.fast else None
        began = time.perf_counter()
        longest = max(args.context + 1, *PROMPTS)
        model = OrtModel(
            folder,
            max(BATCHES) + 1,
            CHUNK,
            max_len=longest,
            threads=args.threads,
            graphs=graphs,
            fast=fast,
            spin_us=args.spin_us,
        )
        print(machine.describe())
        print(f"{folder.name}: loaded in {time.perf_counter() - began:.2f} s, context {args.context}")
        measure(model, args.context, args.rounds, fast=args.fast)
    return 0


def measure(model: OrtModel, context: int, rounds: int, *, fast: bool) -> None:
    rng = np.random.default_rng(0)

    def sequence(slot: int, length: int, prompt: int = 0) -> Sequence:
        """`prompt`: how many of its tokens fast mode computes."""
        words = rng.integers(0, model.card.vocab, length).tolist()
        return Sequence(f"{slot}", prompt, words, Sampling(slot, 0.7), 1, epoch=1, slot=slot)

    rows = [sequence(slot, context) for slot in range(max(BATCHES))]
    spare = sequence(max(BATCHES), max(PROMPTS))
    quick = sequence(max(BATCHES), max(PROMPTS), max(PROMPTS))

    def prefill(one: Sequence, length: int) -> None:
        for start in range(0, length, CHUNK):
            model.run(Step([], Chunk(one, start, min(CHUNK, length - start))))

    def decode(batch: int) -> None:
        step = Step(rows[:batch], None)
        choose(model.run(step), step.samples)

    def mixed() -> None:
        model.run(Step(rows[:8], Chunk(spare, 0, 64)))

    for row in rows:
        prefill(row, context)
        row.computed = context - 1
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        f"decode {b}": (b, partial(decode, b)) for b in BATCHES
    }
    cases |= {f"prefill {n}": (n, partial(prefill, spare, n)) for n in PROMPTS}
    if fast:
        cases |= {f"prefill {n}, fast": (n, partial(prefill, quick, n)) for n in PROMPTS}
    cases["decode 8 beside a chunk of 64"] = (72, mixed)
    took: dict[str, list[float]] = {name: [] for name in cases}
    for done in range(rounds):
        for name, (_, run) in cases.items():
            run()  # what the case before left in the caches is not this one's
            repeats = 5 if "decode" in name else 1
            began = time.perf_counter()
            for _ in range(repeats):
                run()
            took[name].append((time.perf_counter() - began) / repeats)
        if sys.stderr.isatty():
            print(f"\rround {done + 1}/{rounds}, load {os.getloadavg()[0]:.1f}", end="", file=sys.stderr)
    print("\n| | tokens/s | best | ms |\n|---|---|---|---|")
    for name, (tokens, _) in cases.items():
        middle, best = statistics.median(took[name]), min(took[name])
        print(f"| {name} | {tokens / middle:.0f} | {tokens / best:.0f} | {middle * 1e3:.1f} |")
    if fast:
        ratios = (
            statistics.median(took[f"prefill {n}"]) / statistics.median(took[f"prefill {n}, fast"])
            for n in PROMPTS
        )
        print("fast prefill: " + ", ".join(f"{r:.2f}x at {n}" for n, r in zip(PROMPTS, ratios, strict=True)))
    status = Path("/proc/self/status").read_text().splitlines()
    held = {
        key: int(value.split()[0]) >> 10
        for key, _, value in (s.partition(":") for s in status)
        if "Rss" in key
    }
    before = time.process_time()
    time.sleep(1)
    print(f"memory {held} MiB; idle CPU {100 * (time.process_time() - before):.2f} %")


if __name__ == "__main__":
    sys.exit(main())
