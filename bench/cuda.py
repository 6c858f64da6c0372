"""`python -m bench.cuda`: an engine on a GPU, beside what the GPU can do and a PyTorch loop; then by HTTP.

Random weights of a real shape are written and converted below --work, where a second run finds them. Limits,
engine and loop are measured in this process, one after another; then `millrace up` serves the same folder to
a client that asks as many do: Poisson arrivals, and more at once than there are slots.
"""

import argparse
import asyncio
import importlib
import itertools
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench import attention, machine, peer, reuse, table, twins
from bench.limits import Limits, best, by_ort, by_torch
from bench.load import Heard, ask
from bench.plain import Plain
from millrace import cuda, models, plan
from millrace.capacity import Needs
from millrace.convert import card, convert, read_architecture
from millrace.messages import Sampling
from services.engine.choice.sample import choose
from services.engine.model.device import Gpu
from services.engine.model.session import OrtModel
from services.engine.steps.prefix import BLOCK, Prefixes
from services.engine.steps.scheduler import Chunk, Scheduler, Shelve, Step
from services.engine.steps.sequence import Sequence

PARTS = ("limits", "attention", "engine", "torch", "http")
TEXT = "The miller counts the sacks, and the river counts for him. " * 20
"""That conversion measures random weights on: nothing is to be learnt of them."""


@dataclass(frozen=True)
class Rig:
    """What is measured, and how much of it."""

    folder: Path  # converted for the device
    gpu: Callable[..., Gpu]
    limits: Limits
    chunk: int = 512
    rounds: int = 5
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    prompt: int = 1024
    answer: int = 128
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    rates: tuple[float, ...] = (1, 2, 4, 8, 16)
    seconds: float = 20.0

    @property
    def needs(self) -> Needs:
        return plan.needs(models.find(str(self.folder), ""))

    @property
    def products(self) -> float:
        """Operations of all linear layers for one token."""
        return 2 * read_architecture(self.folder).linear

    @property
    def heads(self) -> attention.Heads:
        of = card.load(self.folder)
        return attention.Heads(of.heads, of.kv_heads, of.head_dim, of.cache_kind.type)

    def attention(self, tokens: float, context: float) -> float:
        """Operations for so many tokens that see so many."""
        of = card.load(self.folder)
        return 4 * of.layers * of.heads * of.head_dim * tokens * context


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--shape", choices=twins.SHAPES, default="0.6b")
    parser.add_argument("--quant", choices=("fp16", "bf16", "int8", "int4"), default="fp16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--chunk", type=int, default=Rig.chunk)
    parser.add_argument("--rounds", type=int, default=Rig.rounds)
    parser.add_argument("--seconds", type=float, default=Rig.seconds, help="of each rate of arrivals")
    parser.add_argument("--work", type=Path, help="where to keep what is made (default: nowhere)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    number = cuda.number(args.device)
    refused = cuda.refusal(args.device, has := cuda.found()) or cuda.tried(number or 0)
    if number is None or refused:
        print(f"bench.cuda: {refused or f'--device {args.device} is no GPU'}", file=sys.stderr)
        return 2
    print(f"{machine.describe()}\n{has.devices[number].name}, driver {has.driver}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        folder = converted(work, args.shape, args.quant)
        limits = by_ort(Gpu(number))
        rig = Rig(folder, partial(Gpu, number), limits, args.chunk, args.rounds, seconds=args.seconds)
        print(f"{folder.name}; a step's limit is that of ONNX Runtime's own copies and products: {limits}")
        measured: dict[str, Callable[[], None]] = {
            "limits": loop_limits,
            "attention": lambda: attention.show(rig.gpu, rig.heads, limits),
            "engine": lambda: engine(rig),
            "torch": lambda: loop(rig, twins.SHAPES[args.shape]),
            "http": lambda: uvloop.run(http(rig, work, MILLRACE_DEVICE=f"cuda:{number}")),
        }
        return 1 if [part for part in args.parts or PARTS if not went(part, measured[part])] else 0


def went(part: str, measure: Callable[[], None]) -> bool:
    """What fails is told, and what comes after it is measured all the same."""
    began = time.monotonic()
    try:
        measure()
    except Exception:
        print(f"bench.cuda: {part} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return False
    print(f"{part} took {time.monotonic() - began:.0f} s", flush=True)
    return True


def converted(work: Path, shape: str, quant: Any) -> Path:
    out = work / f"{shape}-{quant}-cuda"
    if not out.exists():
        convert(twins.hub(work, shape), out, quant, words=TEXT, accept=True, device="cuda")
    return out


def imported() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        print("without PyTorch, which is not here")
        return None


# -- the engine in this process


def engine(rig: Rig) -> None:
    rows: list[list[table.Cell]] = []
    for captures in (True, False):
        for batch, seconds in decoded(rig, captures).items():
            moved = rig.needs.read + batch * rig.prompt * rig.needs.token
            least = rig.limits.seconds(moved, batch * rig.products + rig.attention(batch, rig.prompt))
            said = "recorded" if captures else "one by one"
            rows.append([batch, said, seconds * 1e3, batch / seconds, f"{least / seconds:.0%}"])
    heads = ["batch", "steps", "ms a step", "tokens/s", "of the limit"]
    table.show(f"Decoding at {rig.prompt} tokens of context", heads, rows)
    seconds = prefilled(rig)
    operations = rig.prompt * rig.products + rig.attention(rig.prompt, rig.prompt / 2)
    least = rig.limits.seconds(rig.needs.read, operations)
    cells: list[table.Cell] = [rig.prompt, rig.chunk, rig.prompt / seconds, f"{least / seconds:.0%}"]
    table.show("A prompt", ["tokens", "in chunks of", "tokens/s", "of the limit"], [cells])
    heads = ["tokens", "cold ms", "warm ms", "from memory ms", "cold, of from memory"]
    rows = []
    for n, took in first_tokens(rig).items():
        rows.append([n, *(each * 1e3 for each in took), f"{took[0] / took[2]:.1f}x"])
    table.show("The first token of a prompt", heads, rows)


def sequence(model: OrtModel, slot: int, length: int) -> Sequence:
    words = np.random.default_rng(slot).integers(0, model.card.vocab, length).tolist()
    return Sequence(f"{slot}", length, words, Sampling(slot, 0.7), 1, epoch=1, slot=slot)


def prefill(model: OrtModel, one: Sequence, chunk: int) -> None:
    for start in range(0, len(one.tokens), chunk):
        model.run(Step([], Chunk(one, start, min(chunk, len(one.tokens) - start))))


def decoded(rig: Rig, captures: bool) -> dict[int, float]:
    """Seconds of a step, by its rows."""
    most = max(rig.batches)
    gpu = rig.gpu(captures=captures)
    model = OrtModel(rig.folder, most, rig.chunk, max_len=rig.prompt + 1, device=gpu)
    rows = [sequence(model, slot, rig.prompt) for slot in range(most)]
    for row in rows:
        prefill(model, row, rig.chunk)
        row.computed = rig.prompt - 1

    def step(batch: int) -> None:
        choose(model.run(Step(rows[:batch], None)), rows[:batch])

    return {batch: best(partial(step, batch), 5 * rig.rounds) for batch in rig.batches}


def prefilled(rig: Rig) -> float:
    model = OrtModel(rig.folder, 1, rig.chunk, max_len=rig.prompt + 1, device=rig.gpu())
    return best(partial(prefill, model, sequence(model, 0, rig.prompt), rig.chunk), rig.rounds)


def first_tokens(rig: Rig) -> dict[int, tuple[float, float, float]]:
    """Seconds cold, with its prefix on the GPU, and with it in our memory; by the prompt's length."""
    of = card.load(rig.folder)
    lengths = [n for n in rig.lengths if n < of.max_len]
    longest = max(lengths)
    room = (longest + BLOCK) * of.token_bytes
    model = OrtModel(
        rig.folder,
        2,
        rig.chunk,
        max_len=longest + 1,
        prefix_bytes=room,
        host_bytes=room,
        device=rig.gpu(),
    )
    found, rng = {}, np.random.default_rng(0)
    for n in (lengths[0], *lengths):  # the first time, the device is only waking up
        took: dict[str, list[float]] = {"cold": [], "warm": [], "host": []}
        for _ in range(rig.rounds):
            words = rng.integers(0, model.card.vocab, n).tolist()
            kept = Prefixes(model.places, model.shelf)
            for case, seconds in took.items():
                if case == "host":
                    model.copy([Shelve(name, place) for name, place in kept.placed()])
                    kept = Prefixes(model.places, model.shelf)
                scheduler = Scheduler(2, rig.chunk, kept)
                scheduler.add(one := Sequence(case, n, list(words), Sampling(1, 0.0), 1, epoch=1))
                seconds.append(reuse.run(scheduler, model))
                assert (case != "cold") == (one.cached > n - 2 * BLOCK), f"{case}: {one.cached} of {n} tokens"
        cold, warm, host = map(statistics.median, took.values())
        found[n] = cold, warm, host
    return found


# -- PyTorch


def loop_limits() -> None:
    if torch := imported():
        print(f"PyTorch {torch.__version__}: {by_torch(torch)}", flush=True)


def loop(rig: Rig, config: dict[str, Any]) -> None:
    if torch := imported():
        plain(rig, torch, config)


def plain(rig: Rig, torch: Any, config: dict[str, Any], device: str = "cuda") -> None:
    rows: list[list[table.Cell]] = []

    def run(loop: Plain, tokens: Any, start: int) -> None:
        loop(tokens, start)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        loop = Plain(torch, config, max(rig.batches), rig.prompt + 1, device)
        for batch in rig.batches:
            tokens = torch.randint(config["vocab_size"], (batch, 1), device=device)
            seconds = best(partial(run, loop, tokens, rig.prompt), 5 * rig.rounds)
            rows.append([f"decode, {batch} rows", seconds * 1e3, batch / seconds])
        tokens = torch.randint(config["vocab_size"], (1, rig.prompt), device=device)
        seconds = best(partial(run, loop, tokens, 0), rig.rounds)
        rows.append([f"prefill, {rig.prompt} tokens", seconds * 1e3, rig.prompt / seconds])
    table.show(f"A plain PyTorch loop at {rig.prompt} tokens", ["step", "ms", "tokens/s"], rows)


# -- by HTTP


async def http(rig: Rig, work: Path, **settings: str) -> None:
    slots, max_len = max(rig.batches), rig.prompt + rig.answer + BLOCK
    settings = {"MILLRACE_CHUNK": str(rig.chunk), "MILLRACE_QUEUE": str(4 * slots), **settings}
    prompts, rows = peer.Prompts(), []
    async with peer.millrace("cuda", rig.folder, work, max_len, slots=slots, **settings) as server:
        await poured(server, prompts, rig, itertools.repeat(0.0, 2))  # the first steps are recorded
        for rate in rig.rates:
            chance = random.Random(rate)
            pauses = [chance.expovariate(rate) for _ in range(max(2, int(rate * rig.seconds)))]
            rows.append([f"{rate:g} a second", *told(rig, await poured(server, prompts, rig, pauses))])
        many = await poured(server, prompts, rig, itertools.repeat(0.0, 2 * slots))
        rows.append([f"{2 * slots} at once", *told(rig, many)])
    heads = ["requests", "asked", "whole", "tokens/s", "TTFT p50 ms", "p99", "TPOT p50 ms", "p99"]
    table.show(f"By HTTP: {rig.prompt} tokens in, {rig.answer} out; {slots} slots", heads, rows)


async def poured(server: peer.Server, prompts: peer.Prompts, rig: Rig, pauses: Any) -> list[Heard]:
    asked = []
    due = time.monotonic()
    for pause in pauses:
        due += pause
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        asked.append(await ask(server.port, server.request(prompts(rig.prompt), rig.answer, prompts.seed)))
    await asyncio.wait([one.over for one in asked])
    return asked


def told(rig: Rig, answers: list[Heard]) -> list[table.Cell]:
    """A row of the table; an answer that is not whole is counted as none."""
    good = [one for one in answers if one.status == 200 and one.whole and one.texts]
    if not good:
        return [len(answers), 0, 0.0, *[float("nan")] * 4]
    first = [(one.texts[0][0] - one.asked_ns) / 1e6 for one in good]
    each = [(one.texts[-1][0] - one.texts[0][0]) / 1e6 / (rig.answer - 1) for one in good]
    span = max(one.texts[-1][0] for one in good) - min(one.asked_ns for one in answers)
    quantiles = [table.quantile(values, q) for values in (first, each) for q in (0.5, 0.99)]
    return [len(answers), len(good), len(good) * rig.answer / (span / 1e9), *quantiles]


if __name__ == "__main__":
    sys.exit(main())
