"""Weights that come in 4 bits: GPTQ and AWQ folders, whose codes are kept as they are.

Both divide the input channels into groups; in a group, an output channel has one scale and one zero point:
w = (code - zero) * scale. They differ in how eight codes lie in 32 bits, and GPTQ may have put the input
channels into another order before it divided them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.convert.safetensors import ALL, Floats, Weights
from millrace.models import read_json

Fours = npt.NDArray[np.uint8]

SHIFTS = np.arange(0, 32, 4, dtype=np.uint32)
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where each of eight neighbours lies in an AWQ word."""

OLDER = "quantize_config.json"  # where GPTQ folders once said what config.json says now
FEWEST = 16  # channels of a block, in ONNX Runtime's 4-bit layers
MOST = 32
"""With blocks of 64 or 128, ONNX Runtime 1.31 sums a lone row in another order than several: not exact."""


@dataclass(frozen=True)
class Codes:
    """A linear layer in 4 bits; its input channels are the model's, in another `order` if it has one."""

    fours: Callable[[], Fours]  # [out, in]
    scales: Floats  # [out, groups]
    zeros: Fours  # [out, groups]
    group: int  # input channels of a group
    order: npt.NDArray[np.int64] | None

    @property
    def block(self) -> int:
        """Input channels of a block of ours: a group is made of one or several."""
        if self.scales.shape[1] == 1:  # padding may follow the only group
            return MOST
        return int(min(self.group & -self.group, MOST))

    def weights(self) -> Floats:
        """[out, in], in the model's order. A code times 16 bits fits into 32: nothing is rounded."""
        of = np.arange(self.group * self.scales.shape[1]) // self.group
        found: Floats = (self.fours().astype(np.float32) - self.zeros[:, of]) * self.scales[:, of]
        if self.order is None:
            return found
        back = np.empty_like(found)
        back[:, self.order] = found
        return back


def joined(parts: dict[str, Codes]) -> Codes:
    """Layers that read the same, as one."""
    first = next(iter(parts.values()))
    for name, part in parts.items():
        if part.group != first.group or not _same(part.order, first.order):
            raise ValueError(f"{name} groups its inputs in another way than {next(iter(parts))}")
    return Codes(
        lambda: np.concatenate([part.fours() for part in parts.values()]),
        np.concatenate([part.scales for part in parts.values()]),
        np.concatenate([part.zeros for part in parts.values()]),
        first.group,
        first.order,
    )


def _same(a: npt.NDArray[np.int64] | None, b: npt.NDArray[np.int64] | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


class Packed(Weights):
    """A folder's tensors; what it has in 4 bits is there as if it had it in full."""

    def __init__(self, folder: Path, given: dict[str, Any]):
        super().__init__(folder)
        self._read_codes, self._group, self._symmetric, self._first = _form(folder, given)

    def __contains__(self, name: str) -> bool:
        return super().__contains__(name) or super().__contains__(_codes_name(name))

    def get(self, name: str, *shape: int, rows: slice | list[int] = ALL) -> Floats:
        if name.endswith(".weight") and (codes := self.codes(name.removesuffix(".weight"), *shape)):
            return codes.weights()[rows]
        return super().get(name, *shape, rows=rows)

    def codes(self, name: str, *shape: int) -> Codes | None:
        """Of a linear layer, [out, in]; none if it is not in 4 bits."""
        if not super().__contains__(f"{name}.qweight"):
            return None
        n, k = shape
        group = self._group if self._group > 0 else k
        if k % group or (group < k and group % FEWEST):
            raise ValueError(f"{name}: {k} inputs in groups of {group} are not supported")
        words = (k, n // 8) if self._read_codes is _awq else (k // 8, n)
        packed = self._words(f"{name}.qweight", words)
        zeros = self._zeros(name, self._words(f"{name}.qzeros", (k // group, n // 8)))
        scales = super().get(f"{name}.scales", k // group, n)
        order = self._order(name, k, group)

        def fours() -> Fours:
            found = self._read_codes(packed)
            return np.ascontiguousarray((found if order is None else found[order]).T)

        return Codes(fours, scales.T, zeros.T, group, order)

    def _words(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
        stored = self.raw(name)
        if stored.dtype.itemsize != 4 or stored.shape != shape:
            found = f"{stored.dtype} of shape {list(stored.shape)}"
            raise ValueError(f"{self._folder}: {name} is {found}, not 32 bits of {list(shape)}")
        return stored.view(np.uint32)

    def _zeros(self, name: str, words: npt.NDArray[np.uint32]) -> Fours:
        if self._read_codes is _awq:
            return _awq(words)
        stored = _unpacked(words)
        if self._symmetric and np.isin(stored, (8 - self._first, 8)).all():
            # Some programs write what the newer form has, and name the older one.
            return np.full_like(stored, 8)
        if self._first and (stored == 15).any():
            raise ValueError(
                f"{name}: a zero point of 16 has no room in 4 bits, and programs disagree about it"
            )
        return stored + np.uint8(self._first)

    def _order(self, name: str, k: int, group: int) -> npt.NDArray[np.int64] | None:
        """Input channels so that each group's are neighbours."""
        if not super().__contains__(f"{name}.g_idx"):
            return None
        of = self.raw(f"{name}.g_idx")
        if of.shape != (k,) or not np.array_equal(
            np.bincount(of, minlength=k // group), [group] * (k // group)
        ):
            raise ValueError(f"{name}: g_idx does not divide {k} inputs into groups of {group}")
        order = np.argsort(of, kind="stable")
        return None if np.array_equal(order, np.arange(k)) else order


def opened(folder: Path) -> Weights:
    """The weights of a folder, in whatever form it has them."""
    given = form_of(folder)
    return Packed(folder, given) if given else Weights(folder)


def form_of(folder: Path) -> dict[str, Any]:
    """What a folder says of its codes; nothing if it has its weights in full."""
    given = read_json(folder, "config.json").get("quantization_config") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{folder}/config.json: quantization_config is not an object")
    older = {} if given else read_json(folder, OLDER, optional=True)
    return {"quant_method": "gptq", **older} if older else given


def _form(
    folder: Path, given: dict[str, Any]
) -> tuple[Callable[[npt.NDArray[np.uint32]], Fours], int, bool, int]:
    """How codes are read, the size of a group, whether zero points are all 8, and what is added to them."""
    method = str(given.get("quant_method", "")).lower()
    bits, group = given.get("bits", given.get("w_bit")), given.get("group_size", given.get("q_group_size"))

    def only(key: str, value: Any, *allowed: Any) -> None:
        if value not in allowed:
            named = " or ".join(repr(each) for each in allowed if each)
            raise ValueError(f"{folder}: {method} weights with {key} {value!r} are not read, only {named}")

    if method not in ("gptq", "awq"):
        raise ValueError(f"{folder}: weights quantised by {method or 'a method without a name'} are not read")
    only("bits", bits, 4)
    if not isinstance(group, int) or group < -1 or group == 0:
        raise ValueError(f"{folder}: {method} weights with group_size {group!r} are not read")
    if method == "awq":
        only("version", str(given.get("version", "gemm")).lower(), "gemm")
        return _awq, group, False, 0
    form = given.get("checkpoint_format") or "gptq"
    only("checkpoint_format", form, "gptq", "gptq_v2")
    only("dynamic", given.get("dynamic") or None, None)
    return _gptq, group, bool(given.get("sym", True)), int(form == "gptq")


def _gptq(words: npt.NDArray[np.uint32]) -> Fours:
    """Eight neighbouring input channels in a word: [in / 8, out] to [in, out]."""
    return ((words[:, None, :] >> SHIFTS[None, :, None]) & 15).astype(np.uint8).reshape(-1, words.shape[1])


def _awq(words: npt.NDArray[np.uint32]) -> Fours:
    """Eight neighbouring output channels in a word, in an order of its own: [.., out / 8] to [.., out]."""
    eights = (words[:, :, None] >> SHIFTS[AWQ_ORDER]) & 15
    return eights.astype(np.uint8).reshape(len(words), -1)


def _unpacked(words: npt.NDArray[np.uint32]) -> Fours:
    """Eight neighbours in a word: [.., out / 8] to [.., out]."""
    return ((words[:, :, None] >> SHIFTS) & 15).astype(np.uint8).reshape(len(words), -1)


def _codes_name(weight: str) -> str:
    return f"{weight.removesuffix('.weight')}.qweight" if weight.endswith(".weight") else ""
