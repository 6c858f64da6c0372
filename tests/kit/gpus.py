"""Models for a GPU, and what they should compute: on one, and where a processor stands for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from millrace.convert import convert
from millrace.convert.card import Quant
from millrace.messages import Sampling
from services.engine.model.device import Gpu
from services.engine.steps.sequence import Sequence
from tests.kit import reference
from tests.kit.checkpoint import Tensors, bf16, random_tensors, write_checkpoint
from tests.kit.models import FAMILIES, whole

Opened = Callable[..., Gpu]
"""The fixture `gpu`: in tests/gpu a GPU, elsewhere ONNX Runtime's memory of the processor in its place."""

QUANTS: tuple[Quant, ...] = ("fp16", "bf16", "int8", "int4")


def shape(name: str, quant: Quant) -> dict[str, Any]:
    """A family's, such that its layers are computed in this quantisation."""
    return whole(FAMILIES[name]) if quant in reference.BLOCKS else FAMILIES[name]


def written(root: Path, config: dict[str, Any], quant: Quant) -> Path:
    write_checkpoint(root / "hub", config, dtype="BF16" if quant == "bf16" else "F32")
    return convert(root / "hub", root / "m", quant, device="cuda", accept=True)


def right(config: dict[str, Any], quant: Quant, tokens: list[int]) -> reference.Wide:
    """The logits after each token, with the roundings of the weights and of nothing else."""
    linear, length = reference.BLOCKS.get(quant, reference.exact), config["max_position_embeddings"]
    return reference.logits(config, _stored(config, quant), tokens, linear, length=length)


def _stored(config: dict[str, Any], quant: Quant) -> Tensors:
    drawn = random_tensors(config)
    if quant != "bf16":
        return drawn
    return {name: (bf16(array).astype(np.uint32) << 16).view(np.float32) for name, array in drawn.items()}


def most(name: str, quant: Quant) -> float:
    """The error of a family's logits. Keys with large biases have few of their 16 bits left for the rest;
    bfloat16 has three bits fewer than fp16, so its roundings are eight times as large."""
    return (3e-2 if name == "loud keys" else 1e-2) * (8 if quant == "bf16" else 1)


def sequence(tokens: list[int], slot: int) -> Sequence:
    return Sequence(f"{slot}", len(tokens), tokens, Sampling(0), 1, epoch=1, slot=slot)
