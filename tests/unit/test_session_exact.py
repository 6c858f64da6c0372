"""A sequence's logits are the same bits alone and in company, decoded and prefilled, in any slot."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from millrace.convert import calibrate, card, convert
from millrace.convert.network import Linear, Plan
from millrace.messages import Sampling
from services.engine.choice.sample import Candidates, choose
from services.engine.loop import StepLoop
from services.engine.model import prepare
from services.engine.model.device import Gpu
from services.engine.model.host import HostShelf
from services.engine.model.session import OrtModel
from services.engine.model.shelf import FileShelf
from services.engine.steps.prefix import BLOCK, Prefixes
from services.engine.steps.scheduler import Chunk, Output, Scheduler, Step
from services.engine.steps.sequence import Sequence
from tests.kit.checkpoint import write_checkpoint
from tests.kit.models import FAMILIES, small
from tests.kit.packed import write_packed

Logits = npt.NDArray[np.float32]
Wish = tuple[list[int], int]  # a prompt, and how many tokens to answer

SLOTS = 5
MAX_LEN = 768


class Witness:
    """A model that also keeps every logit it gave, by request and index."""

    def __init__(self, model: OrtModel):
        self._model = model
        self.exact, self.kind, self.places = model.exact, model.kind, model.places
        self.block, self.shelf, self.copy = model.block, model.shelf, model.copy
        self.seen: dict[tuple[str, int], Logits] = {}
        self.joined: list[Sequence] = []
        self.swaps = self.restored = self.guessed = 0
        self._guessed: dict[tuple[str, int], Logits] = {}

    def run(self, step: Step) -> Candidates:
        candidates = self._model.run(step)
        self.swaps += len(step.swaps)
        samples = step.samples
        for row, sequence in enumerate(samples):
            self.seen[sequence.request, sequence.answered] = self._model.logits[row].copy()
        if step.guesses:
            last = samples[-1]
            self._guessed = {
                (last.request, last.answered + i): self._model.logits[len(samples) + i - 1].copy()
                for i in range(1, len(step.guesses) + 1)
            }
        return candidates

    def told(self, outputs: list[Output]) -> None:
        """Which guesses were right."""
        for output in outputs:
            key = output.request, output.index
            if key in self._guessed:
                self.guessed += 1
                self.seen[key] = self._guessed[key]
        self._guessed = {}


class Sly:
    """Guesses what was said when the request was alone; every seventh time something else, too."""

    def __init__(self, wishes: dict[str, Wish], tokens: dict[str, list[int]]):
        self._texts = {name: [*prompt, *tokens[name]] for name, (prompt, _) in wishes.items()}

    def guess(self, sequence: Sequence, most: int) -> list[int]:
        at = len(sequence.tokens)
        guesses = self._texts[sequence.request][at : at + most]
        if at % 7 == 0 and guesses:
            guesses[-1] = (guesses[-1] + 1) % 331
        return guesses

    def judged(self, sequence: Sequence, guessed: int, right: int) -> None:
        pass


def sequence(name: str, prompt: list[int], answers: int, committed: list[int], epoch: int) -> Sequence:
    return Sequence(
        name, len(prompt), [*prompt, *committed], Sampling(len(prompt), 0.8), answers, epoch=epoch
    )


def alone(
    model: OrtModel, wishes: dict[str, Wish], chunk: int, *, fast: bool
) -> tuple[dict[str, list[int]], Witness]:
    """Each request by itself: its tokens and its logits."""
    witness, tokens = Witness(model), {}
    for name, (prompt, answers) in wishes.items():
        scheduler = Scheduler(1, chunk, apart=fast)
        scheduler.add(made := sequence(name, prompt, answers, [], 1))
        while step := scheduler.schedule():
            found = witness.run(step)
            scheduler.postprocess(step, choose(found, step.samples) if step.samples else [])
        tokens[name] = made.tokens[len(prompt) :]
    return tokens, witness


def together(
    model: OrtModel, wishes: dict[str, Wish], tokens: dict[str, list[int]], rng: random.Random, *, fast: bool
) -> Witness:
    """All requests in one engine: they join late, are granted late, are dropped, resume part way, and share
    what they begin with in a pool that is too small for them; what the last ones say is guessed."""
    witness = Witness(model)
    prefixes = Prefixes(model.places, model.shelf)
    sly = Sly(wishes, tokens)
    scheduler = Scheduler(SLOTS, rng.choice([1, 7, 32, 90, 300]), prefixes, lambda: sly, apart=fast)
    outputs: list[Output] = []
    loop = StepLoop(scheduler, witness, outputs.extend, lambda error: None)
    coming = list(wishes)
    rng.shuffle(coming)
    ungranted: dict[str, list[int]] = {}
    alive: set[str] = set()
    while True:
        if coming and (rng.random() < 0.2 or not alive):
            name = coming.pop()
            prompt, answers = wishes[name]
            committed = tokens[name][: rng.randrange(answers)] if rng.random() < 0.5 else []
            late = rng.random() < 0.3
            if late:
                ungranted[name] = committed
            made = sequence(name, prompt, answers, [] if late else committed, 0 if late else 1)
            scheduler.add(made)
            witness.joined.append(made)
            alive.add(name)
        if ungranted and (rng.random() < 0.1 or alive == set(ungranted)):
            name = rng.choice(sorted(ungranted))
            scheduler.grant(name, 2, ungranted.pop(name))
        if alive and rng.random() < 0.004:
            name = rng.choice(sorted(alive))
            scheduler.drop(name)
            alive.discard(name)
            ungranted.pop(name, None)
        outputs.clear()
        if not loop.step() and not alive and not coming:
            witness.restored = prefixes.counts["prefixes_restored"]
            return witness
        witness.told(outputs)
        for output in outputs:
            if output.finish:
                alive.discard(output.request)


def mix(plan: Plan, linear: Linear, kernel: str) -> None:
    plan.kernels[linear.name] = kernel


@pytest.mark.parametrize(
    ("family", "quant"),
    [
        ("llama3.2", "int8"),
        ("llama2", "int4"),
        ("mistral", "int8"),
        ("qwen3", "int8"),
        ("loud keys", "int8"),
        ("gemma2", "int8"),
        ("gemma3", "int4"),
        ("mixed", "int8"),
        ("mixed", "int4"),
        ("gptq", "int4"),
        ("awq", "int4"),
        ("far", "int8"),
        ("llama3.2", "fast"),
        ("mistral", "fast"),
        ("loud keys", "fast"),
        ("gemma2", "fast"),
    ],
)
def test_logits_do_not_depend_on_company(
    tmp_path: Path, family: str, quant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real scheduler, with joins, late grants, drops, resumes and shared prefixes; in every
    arithmetic. In another device's memory, for which ONNX Runtime's own stands, it is the same: prefixes lie
    there, and behind them in ours; rows are filled up to few batches. In fast mode, too."""
    far, fast = family == "far", quant == "fast"
    quant = "int8" if fast else quant
    family = "qwen3" if far else family
    if family == "mixed":
        family, kernels = "llama2", itertools.cycle([quant, "wide", "int8", "fine"])
        monkeypatch.setattr(
            calibrate, "arithmetic", lambda a, plan, linear, *given: mix(plan, linear, next(kernels))
        )
    if family in ("gptq", "awq"):
        shape = {"hidden_size": 128, "intermediate_size": 384, "head_dim": 32, "num_attention_heads": 4}
        group = 128 if family == "awq" else 64
        write_packed(tmp_path / "hub", small("Llama", **shape), family, group=group, shuffled=group == 64)
    else:
        write_checkpoint(tmp_path / "hub", FAMILIES[family])
    folder = convert(tmp_path / "hub", tmp_path / "model", quant, accept=True)
    graphs = prepare.prepared(folder, tmp_path)

    def made(device: Gpu | None = None) -> OrtModel:
        return OrtModel(
            folder,
            SLOTS,
            MAX_LEN,
            max_len=MAX_LEN,
            threads=2,
            graphs=None if device else graphs,
            fast=prepare.faster(folder, tmp_path, graphs) if fast and graphs else None,
            prefix_bytes=30 * BLOCK * card.load(folder).token_bytes,
            device=device,
        )

    near = made()
    model = made(Gpu(0, "cpu")) if far else near
    size = 100 * model.block.nbytes
    model.shelf = (
        HostShelf(size, model.block) if far else FileShelf(tmp_path / "shelf", size, model.kind, model.block)
    )
    rng = random.Random(7)
    lengths = [1, 2, 5, 31, 32, 33, 64, 100, 257, 500]
    wishes = {
        f"r{i}": ([rng.randrange(331) for _ in range(length)], rng.randrange(3, 40))
        for i, length in enumerate(lengths)
    }
    for name, shared in (("r8", 40), ("r8", 150), ("r9", 300)):
        prompt = [*wishes[name][0][:shared], *(rng.randrange(331) for _ in range(20))]
        wishes[f"{name} to {shared}"] = prompt, 20
    tokens, expected = alone(near, wishes, 64, fast=fast)
    for name in ("r4", "r6"):  # a second turn
        prompt = [*wishes[name][0], *tokens[name], 5, 6, 7]
        wishes[f"{name} again"] = prompt, 20
    tokens, expected = alone(near, wishes, 64, fast=fast)
    swaps = cached = restored = guessed = 0
    for seed in range(6):
        witness = together(model, wishes, tokens, random.Random(seed), fast=fast)
        swaps += witness.swaps
        restored += witness.restored
        guessed += witness.guessed
        cached += sum(made.cached for made in witness.joined)
        differing = [
            key for key, seen in witness.seen.items() if not np.array_equal(seen, expected.seen[key])
        ]

        assert [] == differing, f"{len(differing)} of {len(witness.seen)}, seed {seed}"
    assert swaps > 0 and cached > 500 and restored > 0 and guessed > 20

    for name, (prompt, answers) in wishes.items():
        whole = sequence(name, prompt, answers + 1, tokens[name][:-1], 1)
        whole.slot = 2
        ends = (0, len(prompt), len(whole.tokens)) if fast else (0, len(whole.tokens))
        for start, end in itertools.pairwise(ends):
            model.run(Step([], Chunk(whole, start, end - start)))

        assert np.array_equal(expected.seen[name, answers - 1], model.logits[0]), name
