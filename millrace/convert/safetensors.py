"""Weights as the Hub stores them: in one file or several, mapped, each tensor read when it is asked for."""

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.models import inside

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
ALL = slice(None)
MAX_HEADER = 100 << 20  # the format's own limit


class Weights:
    """The tensors of a folder by name."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._tensors: dict[str, tuple[Array, str]] = {}
        for shard in self._shards():
            path = inside(folder, shard)
            if not path.is_file():
                raise ValueError(f"{folder}: the shard {shard} is missing")
            self._read(path)
        if "embed_tokens.weight" in self._tensors:  # a model that was stored without its head
            self._tensors = {f"model.{name}": tensor for name, tensor in self._tensors.items()}

    def _shards(self) -> list[str]:
        index = inside(self._folder, "model.safetensors.index.json")
        if not index.is_file():
            only = sorted(path.name for path in self._folder.glob("*.safetensors"))
            return only if len(only) == 1 else ["model.safetensors"]
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: not an index of shards ({error!r})") from None
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{index}: not an index of shards")
        return sorted(names)

    def _read(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
            if length > min(size - 8, MAX_HEADER):
                raise ValueError(f"{path}: not a safetensors file")
            try:
                header = json.loads(file.read(length))
                tensors = {n: _entry(t) for n, t in header.items() if n != "__metadata__"}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}: not a safetensors file ({error!r})") from None
        data = (
            np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
        )
        for name, (dtype, shape, begin, end) in tensors.items():
            if dtype not in DTYPES:
                raise ValueError(f"{path}: {name} is {dtype}, which is not read here")
            kind = np.dtype(DTYPES[dtype])
            if not 0 <= begin <= end <= data.size or end - begin != prod(shape) * kind.itemsize:
                raise ValueError(f"{path}: {name} does not lie where the header says (truncated?)")
            self._tensors[name] = data[begin:end].view(kind).reshape(shape), dtype

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def raw(self, name: str) -> Array:
        """As it is stored."""
        return self._stored(name)[0]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name)[0].shape

    def get(self, name: str, *shape: int, rows: slice | list[int] = ALL) -> Floats:
        """The tensor, or some of its rows, as fp32, if it has the shape that the configuration promises."""
        stored, dtype = self._stored(name)
        if stored.shape != shape:
            raise ValueError(f"{self._folder}: {name} has shape {list(stored.shape)}, not {list(shape)}")
        if dtype == "BF16":
            wide = stored[rows].astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return stored[rows].astype(np.float32)

    def _stored(self, name: str) -> tuple[Array, str]:
        try:
            return self._tensors[name]
        except KeyError:
            raise ValueError(f"{self._folder}: the tensor {name} is missing") from None


def _entry(tensor: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    begin, end = tensor["data_offsets"]
    shape = tuple(map(int, tensor["shape"]))
    if any(n < 0 for n in shape):
        raise ValueError("a negative dimension")
    return str(tensor["dtype"]), shape, int(begin), int(end)
