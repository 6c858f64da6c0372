"""`python -m bench.pages FOLDER`: keys and values in large pages, beside small ones.

Two engines of the same model in this process take the same steps in turn. One thread computes, and what it
took is by its own clock, so other work on the machine costs both of them alike.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from bench import machine
from bench.table import Cell, mib, show
from millrace import models
from millrace.convert import card
from millrace.messages import Sampling
from millrace.resources import resident
from services.engine.model import prepare
from services.engine.model.near import Cache
from services.engine.model.session import OrtModel
from services.engine.steps.prefix import BLOCK
from services.engine.steps.scheduler import Fetch, Step
from services.engine.steps.sequence import Sequence

ROWS = (1, 4, 8, 16)
CONTEXTS = (256, 1024)
HELD = (BLOCK, 1024)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument("folder", help="a converted model with keys and values in 8 bits")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--work", type=Path, help="where to keep what is made (default: nowhere)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        folder = prepare.converted(models.find(args.folder), work)
        print(machine.describe())
        memory(folder)
        speed(folder, prepare.prepared(folder, work), args.rounds)
    return 0


def memory(folder: Path) -> None:
    of = card.load(folder)
    rows: list[list[Cell]] = []
    for slots in (1, max(ROWS)):
        for held in HELD:
            cells: list[Cell] = [f"{slots} x {held}"]
            for large in (False, True):
                cache = Cache(of, max(ROWS) + 1, of.max_len, large=large)
                before, block = resident(), np.ones_like(cache.block)
                for slot in range(slots):
                    cache.fetch(slot, 0, [block] * (held // BLOCK))
                cells.append(mib(resident() - before))
            rows.append(cells)
    title = f"{folder.name}: MiB of keys and values, slots of {of.max_len} tokens"
    show(title, ["slots x tokens", "small pages", "large"], rows)


def speed(folder: Path, graphs: Path | None, rounds: int) -> None:
    both = [
        OrtModel(folder, max(ROWS), 1, max_len=max(CONTEXTS), threads=1, graphs=graphs, large_pages=large)
        for large in (False, True)
    ]
    block = np.random.default_rng(0).integers(-60, 60, both[0].block.shape).astype(both[0].block.dtype)
    held = [
        Sequence(f"{slot}", 1, [5] * max(CONTEXTS), Sampling(0), 1, 1, slot=slot) for slot in range(max(ROWS))
    ]
    for model in both:
        model.copy(Fetch(one.slot, 0, [block] * (max(CONTEXTS) // BLOCK)) for one in held)
    rows: list[list[Cell]] = []
    for count in ROWS:
        for context in CONTEXTS:
            for one in held:
                one.computed = context - 1
            step = Step(held[:count], None)
            took: list[list[float]] = [[], []]
            for turn in range(rounds):
                for which in (0, 1) if turn % 2 else (1, 0):
                    both[which].run(step)  # what the other left in the caches is not this one's
                    began = time.thread_time()
                    both[which].run(step)
                    took[which].append(time.thread_time() - began)
            ratio = median(large / small for small, large in zip(*took, strict=True))
            best = [min(each) * 1e3 for each in took]
            rows.append([f"{count} x {context}", *best, best[1] / best[0], ratio])
    title = f"{folder.name}: a step of one thread, its own clock, {rounds} rounds in turn"
    show(title, ["rows x context", "small, ms (best)", "large", "ratio of the best", "median ratio"], rows)


if __name__ == "__main__":
    sys.exit(main())
