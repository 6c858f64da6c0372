"""What a graph that others exported wants and gives, read from its inputs and outputs alone.

All such graphs take the words and the keys and values of before, and give logits and the keys and values of
now. They differ in what else they want, and in where the new keys and values go:

    in place    behind the old ones, in the same memory (GroupQueryAttention, as onnxruntime-genai builds it)
    grown       in new tensors, which are the old ones and the new ones together (optimum, onnx-community)

No input tells which it is: that is tried out (probe.py).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from millrace import models

NAME = models.GUEST
VERSION = 1

PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
PRESENT = re.compile(r"present(?:_key_values)?\.(\d+)\.(key|value)")
KEEP = ("num_logits_to_keep", "logits_to_keep")
BRANCH = "use_cache_branch"
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


@dataclass(frozen=True)
class Put:
    """An input or output, as a session tells of it."""

    name: str
    type: str
    shape: list[int | str | None]


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """How a graph is to be called."""

    layers: int
    kv_heads: int
    head_dim: int
    cache: Literal["fp32", "fp16"]
    words: Literal["int64", "int32"]  # the type of input_ids, attention_mask and position_ids
    positions: bool  # whether it asks for position_ids
    keep: str  # the input that says of how many words logits are wanted; "" if they come of all
    branch: bool  # whether it has to be told that there are keys and values of before
    past: list[tuple[str, str]]  # the inputs of each layer's keys and values
    present: list[tuple[str, str]]  # and the outputs

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * (2 if self.cache == "fp16" else 4)


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine has to know of a guest: `guest.json`."""

    version: int
    graph: str
    form: Form
    vocab: int
    in_place: bool
    batch: bool  # whether rows of different lengths may be computed as one batch
    # The largest difference seen, as a share of the largest logit; 0: the same bits.
    company: float  # between a sequence alone and beside others
    resumed: float  # between words computed one by one and at once, as they are after a fail-over
    digest: str  # of the graph and its weights

    @property
    def exactness(self) -> list[str]:
        """In words, for the log and for `millrace model show`."""
        if not self.batch:
            said = [
                "sequences are computed one by one: this graph cannot tell rows of different lengths apart"
            ]
        elif self.company:
            said = [f"not batch-invariant: logits differ by {self.company:.0e} beside other sequences"]
        else:
            said = ["batch-invariant in a sample: the same bits alone and beside other sequences"]
        if self.resumed:
            said.append(
                "a stream that goes on at another engine may say something else: logits of words that are "
                f"computed again differ by {self.resumed:.0e}"
            )
        else:
            said.append("in a sample, words computed again, as after a fail-over, gave the same bits")
        return said


def load(folder: Path) -> Card:
    try:
        card = msgspec.json.decode((folder / NAME).read_bytes(), type=Card)
    except msgspec.DecodeError as error:
        raise ValueError(f"{folder / NAME}: {error}") from None
    if card.version != VERSION:
        raise ValueError(f"{folder / NAME} is of version {card.version}, not {VERSION}: import it again")
    return card


def recognise(inputs: Iterable[Put], outputs: Iterable[Put]) -> Form:
    """How the graph is to be called; ValueError names what is not known here."""
    ins, outs = {put.name: put for put in inputs}, {put.name: put for put in outputs}
    past, present = _pairs(ins, PAST), _pairs(outs, PRESENT)
    for name in ("input_ids", "attention_mask"):
        if name not in ins:
            raise ValueError(f"the graph has no input {name}: not a decoder of a form that is known here")
    if "logits" not in outs:
        raise ValueError("the graph has no output logits: not a decoder of a form that is known here")
    if not past or len(past) != len(present):
        raise ValueError(
            f"the graph takes keys and values of {len(past)} layers and gives those of {len(present)}: "
            "it cannot go on where it was"
        )
    keep = next((name for name in KEEP if name in ins), "")
    known = {
        "input_ids",
        "attention_mask",
        "position_ids",
        keep,
        BRANCH,
        *(name for pair in past for name in pair),
    }
    if unknown := sorted(ins.keys() - known):
        raise ValueError(f"the graph wants {', '.join(unknown)}, which is not known here")
    shapes = {(ins[name].shape[1], ins[name].shape[3], ins[name].type) for pair in past for name in pair}
    if len(shapes) != 1:
        raise ValueError(f"the layers' keys and values differ: {sorted(map(str, shapes))}")
    ((kv_heads, head_dim, kind),) = shapes
    if not isinstance(kv_heads, int) or not isinstance(head_dim, int):
        raise ValueError(f"the shape of keys and values is open: [_, {kv_heads}, _, {head_dim}]")
    if kind not in ("tensor(float)", "tensor(float16)"):
        raise ValueError(f"keys and values are of {kind}: fp32 and fp16 are read here")
    word = ins["input_ids"].type
    if word not in ("tensor(int64)", "tensor(int32)"):
        raise ValueError(f"input_ids is of {word}")
    return Form(
        layers=len(past),
        kv_heads=kv_heads,
        head_dim=head_dim,
        cache="fp32" if kind == "tensor(float)" else "fp16",
        words="int64" if word == "tensor(int64)" else "int32",
        positions="position_ids" in ins,
        keep=keep,
        branch=BRANCH in ins,
        past=past,
        present=present,
    )


def _pairs(puts: dict[str, Put], pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """The names of keys and values, layer by layer."""
    found: dict[int, dict[str, str]] = {}
    for name, put in puts.items():
        if match := pattern.fullmatch(name):
            if len(put.shape) != 4:
                raise ValueError(f"{name} has {len(put.shape)} dimensions, not 4")
            found.setdefault(int(match[1]), {})[match[2]] = name
    if sorted(found) != list(range(len(found))) or any(len(pair) != 2 for pair in found.values()):
        raise ValueError(f"keys and values are not there for every layer: {sorted(found)}")
    return [(found[i]["key"], found[i]["value"]) for i in range(len(found))]
