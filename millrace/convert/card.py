"""What the engine has to know of a converted model without opening its graphs: `millrace.json`."""

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from millrace import models
from millrace.convert.graph import BFLOAT16
from millrace.convert.quality import Quality
from millrace.pooling import Pooling

NAME = models.CARD
VERSION = 1

Quant = Literal["int8", "int4", "fp32", "fp16", "bf16"]
Cache = Literal["int8", "fp32", "fp16", "bf16"]
Device = Literal["cpu", "cuda"]
CACHES: dict[str, np.dtype[Any]] = {
    "int8": np.dtype(np.int8),
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(BFLOAT16),
}


class Card(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    family: str
    quant: Quant
    cache: Cache  # how keys and values are kept
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    max_len: int
    candidates: int  # tokens the graph offers for each wanted row
    graphs: dict[str, str]  # file of each form of a step
    data: str  # the file of their weights
    scales: list[tuple[float, float]] = []  # the largest of each layer's key and value scales
    kernels: dict[str, str] = {}  # linear layers that are computed in another way than most
    smoothed: list[str] = []  # linear layers whose weights took a part of their inputs' differences
    quality: Quality | None = None  # as it was measured when the model was converted
    device: Device = "cpu"  # what the graphs are written for
    own: int = 0  # bytes of weights of which each session on a GPU makes what its kernels read
    pooling: Pooling | None = None  # of a model that makes vectors
    source: str = ""  # the folder it was made from, on the machine where it was made
    digest: str  # of weights and graphs: two folders with the same one give the same answers

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.cache_kind.itemsize

    @property
    def cache_kind(self) -> np.dtype[Any]:
        return CACHES[self.cache]


def load(folder: Path) -> Card:
    path = folder / NAME
    try:
        card = msgspec.json.decode(path.read_bytes(), type=Card)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {NAME}") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    if card.version != VERSION:
        raise ValueError(f"{path} is of version {card.version}; this is version {VERSION}: convert it again")
    return card
