"""Drive the protocol's state machines through many seeded worlds: python -m tests.simulate --seeds 10000"""

import argparse
import multiprocessing
import os
import sys
import time

from tests.kit.world import World, verdict


def judge(seed: int) -> tuple[int, list[str]]:
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        return seed, [f"{type(error).__name__}: {error}"]
    return seed, verdict(world)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="only this one, with everything that happened")
    given = parser.parse_args()
    if given.seed is not None:
        world = World(given.seed)
        try:
            world.run()
        finally:
            print("\n".join(world.trace))
        faults = verdict(world)
        print("\n".join(faults) or "clean")
        return bool(faults)
    bad, began, shown = 0, time.monotonic(), 0.0
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for done, (seed, faults) in enumerate(
            pool.imap_unordered(judge, range(given.seeds), chunksize=16), 1
        ):
            if faults:
                bad += 1
                print(f"seed {seed}: {'; '.join(faults)}", flush=True)
            if time.monotonic() - shown > 5 or done == given.seeds:
                shown = time.monotonic()
                print(f"{done}/{given.seeds} worlds, {bad} bad, {shown - began:.0f} s", flush=True)
    if bad:
        print("replay one: python -m tests.simulate --seed N")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
