"""What a model's memory and sessions are of: the one place that knows a processor from a GPU.

    Held    an array that graphs are bound to, and this process's side of it
    Slots   keys and values of all slots, and of kept prefixes; a GPU's are far.py's

ONNX Runtime copies what is bound from elsewhere when it is bound, not when it runs. So a GPU's inputs lie on
it and are sent to in place, but for what operators read on the host: those inputs are bound there.
"""

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from millrace.columns import size
from millrace.convert.computable import opened
from millrace.convert.graph import BFLOAT16, KINDS, own
from millrace.convert.runtime import NoCuda, ort, ready, said, session
from services.engine.model.registered import Rooms, register
from services.engine.steps.scheduler import Swap

log = logging.getLogger("millrace.engine")

Array = npt.NDArray[Any]
Bound = tuple[str, int, int, list[int], int]
"""What `bind_input` takes: device, its number, ONNX's type, shape, address."""


class Held(Protocol):
    array: Array  # this process's side

    def bound(self, first: int, count: int) -> Bound:
        """These of its first axis."""
        ...

    def send(self) -> None: ...

    def received(self, output: Callable[[], Any], count: int) -> Array:
        """The first of them, after a run; `output` is what the run bound of it."""
        ...


class Slots(Protocol):
    bytes: int
    block: Array  # like one of a prefix, as it lies in this machine's memory

    def bound(self, layer: int, kv: int, first: int, count: int) -> Bound: ...

    def swap(self, swap: Swap) -> None: ...

    def keep(self, slot: int, start: int, places: list[int]) -> None:
        """Consecutive blocks of a slot, from this token on, go to these places in the pool."""
        ...

    def load(self, slot: int, start: int, places: list[int]) -> None:
        """The same way back."""
        ...

    def fetch(self, slot: int, start: int, contents: list[Array]) -> None:
        """Blocks that were kept elsewhere go to a slot."""
        ...

    def contents(self, places: list[int]) -> Iterable[Array]:
        """Of the pool, to be looked at before anything else is asked. A GPU's are whoever's that asked."""
        ...


class Device(Protocol):
    ties: bool  # whether TopK gives equals in ascending order of id
    shares: bool  # prefixes, even where a token's bits depend on how it was computed
    captures: bool  # whether steps of rows are to come in few shapes

    def session(
        self, model: bytes | str, options: ort.SessionOptions, *, steady: bool = False
    ) -> ort.InferenceSession:
        """`steady`: it runs steps of few shapes, over and over."""
        ...

    def hold(self, kind: Any, *shape: int) -> Held: ...


class Near:
    """Memory that the graphs and this process share."""

    def __init__(self, array: Array):
        self.array = array

    def bound(self, first: int, count: int) -> Bound:
        return bound(self.array[first : first + count] if self.array.ndim else self.array)

    def send(self) -> None:
        pass

    def received(self, output: Callable[[], Any], count: int) -> Array:
        return self.array[:count]


class Processor:
    ties = True
    shares = captures = False

    def session(
        self, model: bytes | str, options: ort.SessionOptions, *, steady: bool = False
    ) -> ort.InferenceSession:
        return session(model, options)

    def hold(self, kind: Any, *shape: int) -> Near:
        return Near(np.zeros(shape, kind))


class Gpu:
    """CUDA's device of this number. `name`: ONNX Runtime's for where memory lies; a test may say cpu, and has
    the graphs then as a processor can compute them.
    `captures`: whether steady steps are recorded as CUDA graphs; off where ONNX Runtime says it cannot.
    Weights in 16 bits are there once, for all sessions."""

    ties = False
    shares = True  # none of its steps promise bits, so a prefix that others computed breaks no promise

    def __init__(self, number: int, name: str = "cuda", *, captures: bool = True):
        self.number = number
        self.captures = captures
        self._name = name
        self._weights: dict[tuple[Path, int], Any] = {}

    def session(
        self, model: bytes | str, options: ort.SessionOptions, *, steady: bool = False
    ) -> ort.InferenceSession:
        if self._name == "cuda":
            ready()
        if isinstance(model, str):
            try:
                self._share(Path(model), options)
            except NoCuda:
                raise
            except Exception as error:  # ONNX Runtime has its own kinds
                raise NoCuda(f"no weights on {self._name}:{self.number}: {said(error)}") from None
        if self._name != "cuda":
            return opened(Path(model), options) if isinstance(model, str) else session(model, options)
        if steady and self.captures:
            try:
                return session(model, options, gpu=self.number, captures=True)
            except NoCuda as error:
                log.warning("steps are not recorded as CUDA graphs: %s", error)
                self.captures = False
        return session(model, options, gpu=self.number)

    def _share(self, path: Path, options: ort.SessionOptions) -> None:
        """The weights of a graph, but for those of which each session makes its own."""
        graph = onnx.load(path, load_external_data=False).graph
        packed = own(graph)
        for tensor in graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL or tensor.name in packed:
                continue
            at = {each.key: each.value for each in tensor.external_data}
            key = path.parent / at["location"], int(at["offset"])
            if key not in self._weights:
                kind = tensor_dtype_to_np_dtype(tensor.data_type)
                array = np.memmap(key[0], carrier(kind), "r", key[1], tuple(tensor.dims))
                held = self.value(kind, *array.shape)
                held.update_inplace(array)
                # A session takes only what it is not to free.
                self._weights[key] = held, ort.OrtValue.from_dlpack(held)
            options.add_initializer(tensor.name, self._weights[key][1])

    def hold(self, kind: Any, *shape: int) -> "Far":
        return Far(np.zeros(shape, kind), self.value(kind, *shape), self.number, self._name)

    def value(self, kind: Any, *shape: int) -> Any:
        kind = np.dtype(kind)
        try:
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, KINDS[kind], self._name, self.number)
        except Exception as error:  # ONNX Runtime has its own kinds
            much = size(math.prod(shape) * kind.itemsize)
            raise NoCuda(f"{self._name}:{self.number} has no {much} left: {said(error)}") from None

    def rooms(self, count: int, like: Array) -> Rooms:
        return Rooms(count, like, partial(register, self.number) if self._name == "cuda" else None)

    def part(self, value: Any, kind: Any, shape: list[int], offset: int) -> Bound:
        """Of a value's memory, from so many bytes on."""
        return self._name, self.number, KINDS[np.dtype(kind)], shape, value.data_ptr() + offset


class Far:
    """An array on a GPU, and a copy of it here. Each sending waits; what is there already is not sent."""

    def __init__(self, array: Array, value: Any, number: int, name: str):
        self.array = array
        self._value = value
        self._number = number
        self._name = name
        self._sent = b""

    def bound(self, first: int, count: int) -> Bound:
        part = self.array[first : first + count]
        address = self._value.data_ptr() + first * self.array.strides[0]
        return self._name, self._number, KINDS[part.dtype], list(part.shape), address

    def send(self) -> None:
        if (content := self.array.tobytes()) != self._sent:
            self._value.update_inplace(self.array)
            self._sent = content

    def received(self, output: Callable[[], Any], count: int) -> Array:
        found: Array = output().numpy()
        return found[:count]


def bound(array: Array) -> Bound:
    return "cpu", 0, KINDS[array.dtype], list(array.shape), array.ctypes.data


def carrier(kind: np.dtype[Any]) -> np.dtype[Any]:
    """What arrays are to be of that only carry values of this kind: of bfloat16 they would be no buffers, and
    ONNX Runtime takes none."""
    return np.dtype(np.uint16) if kind == BFLOAT16 else kind


def in_order(ids: Array, best: Array) -> tuple[Array, Array]:
    """Each row best first, equals in ascending order of id."""
    order = np.lexsort((ids, -best), axis=1)
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(best, order, axis=1)
