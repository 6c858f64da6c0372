"""On the PYTHONPATH of a service: its engines sample with a generator for each request, as many do.

Undisturbed that gives the same answer every time. A successor's generator begins anew.
"""

import random
import sys

if sys.orig_argv[-1] == "engine":
    from services.engine.choice import sample
    from services.engine.steps.sequence import Sequence

    generators: dict[str, random.Random] = {}

    def choose(candidates: sample.Candidates, sequences: list[Sequence]) -> list[int]:
        return [
            int(row[generators.setdefault(s.request, random.Random(s.sampling.seed)).randrange(4)])
            for row, s in zip(candidates.ids, sequences, strict=True)
        ]

    sample.choose = choose
