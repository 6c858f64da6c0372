"""`python -m bench.reuse [FOLDER]`: what is saved by prefixes that were computed before, and by guesses.

In this process, through the real scheduler and step loop. The first token of a prompt of 1,024 tokens is
waited for cold, warm, and with all but the last block in a file. Then one stream says a text that is laid
down: a model with random weights has nothing to say, and it is the same text with guesses and without. With
--draft a smaller model guesses at one that never repeats anything; which of that is right is laid down too.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import machine, twins
from millrace import models
from millrace.messages import Sampling
from services.engine.choice.sample import Candidates, choose
from services.engine.guesses.draft import Draft
from services.engine.guesses.lookup import Lookup
from services.engine.loop import StepLoop
from services.engine.model import prepare
from services.engine.model.session import OrtModel
from services.engine.model.shelf import FileShelf
from services.engine.steps.prefix import Prefixes
from services.engine.steps.scheduler import Drafter, Output, Scheduler
from services.engine.steps.sequence import Sequence

Bools = npt.NDArray[np.bool_]

PROMPT, ANSWER, CHUNK = 1024, 200, 64
SHARES = (0.5, 0.7, 0.9, 0.0)
TEXTS = ("repeats itself", "quotes its prompt half of the time", "never repeats anything")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reuse", description=__doc__)
    parser.add_argument("folder", nargs="?", help="a model; without one, random weights of --shape")
    parser.add_argument("--shape", choices=twins.SHAPES, default="135m")
    parser.add_argument("--draft", help="a folder with a smaller model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="where to keep what is made (default: nowhere)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        folder = Path(args.folder) if args.folder else twins.ours(work, args.shape, "int8")
        folder = prepare.converted(models.find(str(folder)), work)
        graphs = prepare.prepared(folder, work)
        longest = PROMPT + ANSWER
        model = OrtModel(folder, 2, CHUNK, max_len=longest, graphs=graphs, prefix_bytes=1 << 30)
        model.shelf = FileShelf(Path(temporary) / "shelf", 1 << 30, model.kind, model.block)
        print(f"{machine.describe()}\n{folder.name}, {args.rounds} rounds in turn; medians")
        prefixes(model, args.rounds)
        guesses(model, args.rounds)
        if args.draft:
            small = prepare.converted(models.find(args.draft), work)
            graphs = prepare.prepared(small, work)
            drafts(model, OrtModel(small, 1, CHUNK, max_len=longest, graphs=graphs), args.rounds)
    return 0


def prefixes(model: OrtModel, rounds: int) -> None:
    rng = np.random.default_rng(0)
    took: dict[str, list[float]] = {"cold": [], "warm": [], "from the file": []}
    for _ in range(rounds):
        prompt = rng.integers(0, model.card.vocab, PROMPT).tolist()
        memory, file = Prefixes(model.places, model.shelf), Prefixes(model.places, model.shelf)
        for case, kept in (("cold", memory), ("warm", memory), ("from the file", file)):
            scheduler = Scheduler(2, CHUNK, kept)
            scheduler.add(Sequence(case, PROMPT, list(prompt), Sampling(1, 0.0), 1, epoch=1))
            took[case].append(run(scheduler, model))
            if case == "warm":
                model.copy(scheduler.put_away())
    cold = statistics.median(took["cold"])
    print(f"\n| {PROMPT} tokens | ms to the first token | of cold |\n|---|---|---|")
    for case, seconds in took.items():
        middle = statistics.median(seconds)
        print(f"| {case} | {middle * 1e3:.1f} | {middle / cold:.3f} |")


def guesses(model: OrtModel, rounds: int) -> None:
    rng = np.random.default_rng(1)
    words = [rng.permutation(model.card.vocab)[:ANSWER].tolist() for _ in range(2)]
    answers = [
        (words[0][:40] * ANSWER)[:ANSWER],
        [word for i in range(0, ANSWER, 20) for word in words[(i // 20) % 2][i : i + 20]],
        words[1],
    ]
    prompt = words[0]
    print("\n| one stream whose text | tokens/s | with guesses | | tokens a step |\n|---|---|---|---|---|")
    for text, answer in zip(TEXTS, answers, strict=True):
        compared(text, model, prompt, answer, Lookup, rounds)


def drafts(model: OrtModel, small: OrtModel, rounds: int) -> None:
    vocab = min(model.card.vocab, small.card.vocab)
    words = np.random.default_rng(2).permutation(vocab)[: 2 * ANSWER].tolist()
    prompt, answer = words[:ANSWER], words[ANSWER:]
    print("\n| guessed by the draft | tokens/s | with guesses | | tokens a step |\n|---|---|---|---|---|")
    for share in SHARES:
        right = np.random.default_rng(3).random(ANSWER) < share

        def say(candidates: Candidates, sequences: list[Sequence], right: Bools = right) -> list[int]:
            choose(candidates, sequences)
            return [answer[s.answered] if right[s.answered] else vocab - 1 for s in sequences]

        draft = Draft(small, vocab, small.max_len, CHUNK, sampler=say)
        compared(f"{share:.0%} right", model, prompt, answer, draft.drafter, rounds)


def compared(
    text: str,
    model: OrtModel,
    prompt: list[int],
    answer: list[int],
    drafter: Callable[[], Drafter],
    rounds: int,
) -> None:
    """A line of the table."""

    def say(candidates: Candidates, sequences: list[Sequence]) -> list[int]:
        choose(candidates, sequences)  # what it takes is part of the step
        return [answer[sequence.answered] for sequence in sequences]

    took: dict[bool, list[float]] = {False: [], True: []}
    steps = 0
    for _ in range(rounds):
        for guessing in (False, True):
            scheduler = Scheduler(2, CHUNK, None, drafter if guessing else None)
            scheduler.add(Sequence("r", len(prompt), list(prompt), Sampling(1, 0.7), ANSWER, epoch=1))
            while scheduler.running == [] or scheduler.running[0].answered == 0:
                StepLoop(scheduler, model, nothing, nothing, say).step()
            seconds, steps = run_on(scheduler, model, say)
            took[guessing].append(seconds)
    plain, fast = (ANSWER / statistics.median(took[guessing]) for guessing in (False, True))
    print(f"| {text} | {plain:.0f} | {fast:.0f} | {fast / plain:.2f}x | {(ANSWER - 1) / steps:.2f} |")


def nothing(_: object) -> None:
    pass


def run(scheduler: Scheduler, model: OrtModel) -> float:
    return run_on(scheduler, model, choose)[0]


def run_on(
    scheduler: Scheduler, model: OrtModel, sampler: Callable[[Candidates, list[Sequence]], list[int]]
) -> tuple[float, int]:
    """Until nothing is left to do: seconds and steps."""
    outputs: list[Output] = []
    loop = StepLoop(scheduler, model, outputs.extend, nothing, sampler)
    began = time.perf_counter()
    while loop.step():
        pass
    return time.perf_counter() - began, loop.steps


if __name__ == "__main__":
    sys.exit(main())
