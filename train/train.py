"""Train the demo model from scratch on our corpus: `python -m train.train --work FOLDER`.

Every step reads fresh conversations, made from the seed and the step's number, so that a run which was
stopped goes on exactly where it was. They are sorted by length and cut into rectangles of about the same
number of tokens: next to no padding, and no conversation sees another one. Only what the assistant says is
learned. Written are

    FOLDER/checkpoint.pt    weights, optimiser, losses; outside of git
    --out                   at the end: config.json, generation_config.json, model.safetensors
    --curve                 at the end: the loss curve as SVG
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from torch.nn import functional as F  # type: ignore[import-not-found]

from services.tokenizer.encode import Encoder
from train.corpus import conversations
from train.llama import Shape, Tensor, Weights, begin, hidden, logits, save
from train.tokenizer import END_OF_TEXT, TURN_END, TURN_START

LONGEST = 1024  # tokens of a conversation; what is longer is cut
RECTANGLE = 1024  # tokens that go through the model at once
LATE = 0.5  # of the steps are over when the corpus turns to what takes long to learn
IGNORED = -100


class Batch:
    """What one step learns from: rectangles of (ids, positions, labels), and how many labels count."""

    def __init__(self, encoder: Encoder, shape: Shape, seed: int, size: int, room: int, *, late: bool):
        self.start, self.end = (encoder.encode(text)[0] for text in (TURN_START, TURN_END))
        self.speaks = encoder.encode("assistant\n")
        rng = random.Random(~seed)
        rows = [
            (ids, self._positions(ids, shape, rng), self._labels(ids))
            for messages, tools in conversations(seed, size, late=late)
            for ids in [encoder.chat(messages, tools=tools, add_generation_prompt=False)[:LONGEST]]
        ]
        rows.sort(key=lambda row: len(row[0]))
        self.answers = sum(label != IGNORED for _, _, labels in rows for label in labels)
        self.tokens = sum(len(ids) for ids, _, _ in rows)
        self.rectangles = [self._pad(part) for part in self._cut(rows, room)]

    def _labels(self, ids: list[int]) -> list[int]:
        """The next token where the assistant is to say it, his end of turn included."""
        labels, speaking = [IGNORED] * len(ids), False
        for at in range(len(ids) - 1):
            if speaking:
                labels[at] = ids[at + 1]
                speaking = ids[at + 1] != self.end
            elif ids[at - len(self.speaks) : at + 1] == [self.start, *self.speaks]:
                labels[at], speaking = ids[at + 1], True
        return labels

    def _positions(self, ids: list[int], shape: Shape, rng: random.Random) -> list[int]:
        """Sometimes a turn begins farther on, so that far positions are learned without long texts."""
        room = shape.max_position_embeddings - len(ids)
        turns = [at for at, token_id in enumerate(ids) if token_id == self.start]
        if len(turns) < 3 or rng.random() < 0.7:
            return list(range(len(ids)))
        jumps = dict(
            zip(turns, pairwise(sorted(rng.randrange(room) for _ in range(len(turns) + 1))), strict=True)
        )
        positions, skipped = [], 0
        for at in range(len(ids)):
            if at in jumps and at:
                skipped += jumps[at][1] - jumps[at][0]
            positions.append(at + skipped)
        return positions

    @staticmethod
    def _cut(rows: list[Any], room: int) -> Iterator[list[Any]]:
        part: list[Any] = []
        for row in rows:
            if part and (len(part) + 1) * len(row[0]) > room:
                yield part
                part = []
            part.append(row)
        yield part

    @staticmethod
    def _pad(rows: list[Any]) -> tuple[Tensor, ...]:
        length = len(rows[-1][0])
        return tuple(
            torch.tensor([row[of] + [filler] * (length - len(row[of])) for row in rows])
            for of, filler in enumerate((0, 0, IGNORED))
        )


def rate(step: int, steps: int, peak: float, warm: int = 200) -> float:
    """Up in a line, down in a cosine."""
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))))


def learn(
    weights: Weights, shape: Shape, batch: Batch, device: str, workers: ThreadPoolExecutor, *, half: bool
) -> float:
    """One step's gradients, added up over its rectangles; returns the mean loss of an answer's token.

    A CPU's cores take a rectangle each: many small operations cost less so than when all cores share every
    operation and wait for each other after it, and other programs on the machine do not stall them.
    """
    leaves = list(weights.values())

    def part(rectangle: tuple[Tensor, ...]) -> tuple[float, tuple[Tensor, ...]]:
        ids, positions, labels = (tensor.to(device) for tensor in rectangle)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            states = hidden(weights, shape, ids, positions)
            counts = labels != IGNORED
            loss = F.cross_entropy(logits(weights, states[counts]).float(), labels[counts], reduction="sum")
        loss = loss / batch.answers
        return loss.item(), torch.autograd.grad(loss, leaves)

    parts = list(workers.map(part, batch.rectangles))
    for leaf, *gradients in zip(leaves, *(gradients for _, gradients in parts), strict=True):
        leaf.grad = sum(gradients)
    return sum(loss for loss, _ in parts)


def curve(losses: list[float], tokens: int, window: int = 20) -> str:
    """The loss over the steps, its mean over a window, on a logarithmic scale; an SVG drawn by hand."""
    wide, high, left, top, bottom = 720, 360, 60, 30, 40
    means = [
        sum(losses[max(0, at - window) : at + 1]) / (at + 1 - max(0, at - window))
        for at in range(len(losses))
    ]
    every = max(1, len(means) // 600)
    low, peak = math.floor(math.log10(min(means))), math.ceil(math.log10(max(means)))

    def x(step: int) -> float:
        return left + (wide - left - 20) * step / max(len(means) - 1, 1)

    def y(loss: float) -> float:
        return top + (high - top - bottom) * (peak - math.log10(loss)) / (peak - low)

    marks = [10.0**power * times for power in range(low, peak + 1) for times in (1, 2, 5)]
    lines = [
        f'<path d="M{left} {y(mark):.1f}H{wide - 20}" stroke="#ddd"/>'
        f'<text x="{left - 6}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>'
        for mark in marks
        if mark <= 10**peak
    ]
    lines += [
        f'<text x="{x(step):.1f}" y="{high - bottom + 18}" text-anchor="middle">{step:,}</text>'
        for step in (len(means) * quarter // 4 for quarter in range(5))
    ]
    points = " ".join(f"{x(step):.1f},{y(means[step]):.1f}" for step in range(0, len(means), every))
    title = f"loss of an answer's token, mean of {window} steps; {tokens / 1e6:.1f} million tokens read"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" '
        f'font-size="11" fill="#444">\n<rect width="{wide}" height="{high}" fill="white"/>\n'
        f'<text x="{left}" y="18" font-size="13">{title}</text>\n'
        + "\n".join(lines)
        + f'\n<text x="{wide // 2}" y="{high - 6}" text-anchor="middle">step</text>'
        + f'\n<polyline points="{points}" fill="none" stroke="#1668a8" stroke-width="1.5"/>\n</svg>\n'
    )


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m train.train", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument(
        "--work", type=Path, required=True, help="folder of the checkpoint; it resumes there"
    )
    options.add_argument("--out", type=Path, help="the finished model's folder, as models/demo")
    options.add_argument("--curve", type=Path, help="the loss curve, as docs/demo-model-loss.svg")
    options.add_argument("--tokenizer", type=Path, default=Path("models/demo"))
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--steps", type=int, default=3400)
    options.add_argument("--batch", type=int, default=48, help="conversations a step")
    options.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate")
    options.add_argument("--layers", type=int, default=Shape.num_hidden_layers)
    options.add_argument("--threads", type=int, help="of the CPU; all unless told")
    options.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options.add_argument("--fp32", action="store_true", help="no bf16 in the arithmetic")
    chosen = options.parse_args()

    device = chosen.device if chosen.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    threads = 1 if device == "cuda" else chosen.threads or torch.get_num_threads()
    torch.set_num_threads(1)
    workers = ThreadPoolExecutor(threads)
    room = RECTANGLE if device == "cpu" else 16 * RECTANGLE
    encoder = Encoder.load(chosen.tokenizer)
    shape = Shape(num_hidden_layers=chosen.layers, vocab_size=encoder.vocab_size)
    weights = {name: weight.to(device).requires_grad_() for name, weight in begin(shape, chosen.seed).items()}
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    norms = [weight for weight in weights.values() if weight.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=chosen.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    losses: list[float] = []
    read, spent = 0, 0.0
    checkpoint = chosen.work / "checkpoint.pt"
    if checkpoint.exists():
        found = torch.load(checkpoint, map_location=device)
        for name, weight in weights.items():
            weight.data.copy_(found["weights"][name])
        optimiser.load_state_dict(found["optimiser"])
        losses, read, spent = found["losses"], found["read"], found["spent"]
        print(f"going on after step {len(losses)}")
    chosen.work.mkdir(parents=True, exist_ok=True)
    count = sum(weight.numel() for weight in weights.values())
    print(f"{count:,} parameters on {device}, {threads} threads, {chosen.steps} steps")

    def keep() -> None:
        beside = checkpoint.with_suffix(".new")
        state = {"weights": weights, "optimiser": optimiser.state_dict()}
        torch.save({**state, "losses": losses, "read": read, "spent": spent}, beside)
        beside.replace(checkpoint)

    first, begun, before = len(losses), time.monotonic(), spent
    for step in range(first, chosen.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, chosen.steps, chosen.rate)
        batch = Batch(
            encoder,
            shape,
            chosen.seed * 1_000_000 + step,
            chosen.batch,
            room,
            late=step >= LATE * chosen.steps,
        )
        losses.append(learn(weights, shape, batch, device, workers, half=not chosen.fp32))
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        read += batch.tokens
        spent = before + time.monotonic() - begun
        if (step + 1) % 20 == 0:
            left = (spent - before) / (step + 1 - first) * (chosen.steps - step - 1)
            print(
                f"step {step + 1}/{chosen.steps}  loss {sum(losses[-20:]) / 20:.4f}  "
                f"{read / spent:,.0f} tokens/s  {spent / 60:.1f} min, {left / 60:.1f} to go",
                flush=True,
            )
        if (step + 1) % 100 == 0:
            keep()
    keep()
    if chosen.out:
        bos, eos = encoder.encode(END_OF_TEXT)[0], encoder.encode(TURN_END)[0]
        size = save(weights, shape, chosen.out, bos=bos, eos=eos)
        print(f"wrote {chosen.out} ({size:,} bytes of weights)")
    if chosen.curve:
        chosen.curve.write_text(curve(losses, read), encoding="utf-8")
        print(f"wrote {chosen.curve}")


if __name__ == "__main__":
    main()
