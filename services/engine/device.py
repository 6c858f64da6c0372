"""What a model's memory and sessions are of: the one place that knows a processor from a GPU.

    Held    an array that graphs are bound to, and this process's side of it
    Slots   keys and values of all slots, which on a GPU never leave it

ONNX Runtime copies what is bound from elsewhere when it is bound, not when it runs. So a GPU's inputs lie on
it and are sent to in place, but for what operators read on the host: those inputs are bound there.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from millrace.convert.card import Card
from millrace.convert.graph import Graph, Inline
from millrace.convert.runtime import ort, session
from services.engine.scheduler import Swap

Array = npt.NDArray[Any]
Bound = tuple[str, int, Any, list[int], int]
"""What `bind_input` takes: device, its number, type, shape, address."""


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

    def bound(self, layer: int, kv: int, first: int, count: int) -> Bound: ...

    def swap(self, swap: Swap) -> None: ...


class Device(Protocol):
    ties: bool  # whether TopK gives equals in ascending order of id

    def session(self, model: bytes | str, options: ort.SessionOptions) -> ort.InferenceSession: ...

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

    def session(self, model: bytes | str, options: ort.SessionOptions) -> ort.InferenceSession:
        return session(model, options)

    def hold(self, kind: Any, *shape: int) -> Near:
        return Near(np.zeros(shape, kind))


class Gpu:
    """CUDA's device of this number. `name`: ONNX Runtime's for where memory lies; a test may say cpu."""

    ties = False

    def __init__(self, number: int, name: str = "cuda"):
        self.number = number
        self._name = name

    def session(self, model: bytes | str, options: ort.SessionOptions) -> ort.InferenceSession:
        return session(model, options, gpu=self.number if self._name == "cuda" else None)

    def hold(self, kind: Any, *shape: int) -> "Far":
        return Far(np.zeros(shape, kind), self.value(kind, *shape), self.number, self._name)

    def value(self, kind: Any, *shape: int) -> Any:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, self._name, self.number)

    def part(self, value: Any, kind: Any, shape: list[int], offset: int) -> Bound:
        """Of a value's memory, from so many bytes on."""
        return self._name, self.number, np.dtype(kind).type, shape, value.data_ptr() + offset


class Far:
    """An array on a GPU, and a copy of it here."""

    def __init__(self, array: Array, value: Any, number: int, name: str):
        self.array = array
        self._value = value
        self._number = number
        self._name = name

    def bound(self, first: int, count: int) -> Bound:
        part = self.array[first : first + count]
        address = self._value.data_ptr() + first * self.array.strides[0]
        return self._name, self._number, part.dtype.type, list(part.shape), address

    def send(self) -> None:
        self._value.update_inplace(self.array)

    def received(self, output: Callable[[], Any], count: int) -> Array:
        found: Array = output().numpy()
        return found[:count]


class FarSlots:
    """[layers, 2, slots, kv_heads, max_len, head_dim] in one piece of a GPU's memory.

    Slots are copied by a graph of nothing but copies: one more slot than asked for is where a copy waits.
    """

    def __init__(self, gpu: Gpu, of: Card, slots: int, max_len: int):
        self._gpu = gpu
        self._kind = of.cache_kind
        self._shape = [of.kv_heads, max_len, of.head_dim]
        self._slot = int(np.prod(self._shape)) * self._kind.itemsize
        self._slots = slots + 1
        self._value = gpu.value(self._kind.type, of.layers, 2, self._slots, *self._shape)
        self.bytes = of.layers * 2 * self._slots * self._slot
        graph = Graph("copy", Inline())
        self._names = [f"{kv}.{i}" for i in range(of.layers) for kv in "kv"]
        shape: list[int | str] = [1, *self._shape]
        for name in self._names:
            graph.node("Identity", graph.input(name, self._kind, shape), named=(f"{name}.out",))
            graph.output(f"{name}.out", self._kind, shape)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._copies = gpu.session(graph.model().SerializeToString(), options)

    def bound(self, layer: int, kv: int, first: int, count: int) -> Bound:
        at = ((layer * 2 + kv) * self._slots + first) * self._slot
        return self._gpu.part(self._value, self._kind, [count, *self._shape], at)

    def swap(self, swap: Swap) -> None:
        waiting = self._slots - 1
        if swap.first_tokens and swap.second_tokens:
            self._copy(swap.first, waiting)
            self._copy(swap.second, swap.first)
            self._copy(waiting, swap.second)
        elif swap.first_tokens:
            self._copy(swap.first, swap.second)
        elif swap.second_tokens:
            self._copy(swap.second, swap.first)

    def _copy(self, source: int, target: int) -> None:
        binding = self._copies.io_binding()
        for at, name in enumerate(self._names):
            binding.bind_input(name, *self.bound(*divmod(at, 2), source, 1))
            binding.bind_output(f"{name}.out", *self.bound(*divmod(at, 2), target, 1))
        self._copies.run_with_iobinding(binding)


def bound(array: Array) -> Bound:
    return "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data


def in_order(ids: Array, best: Array) -> tuple[Array, Array]:
    """Each row best first, equals in ascending order of id."""
    order = np.lexsort((ids, -best), axis=1)
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(best, order, axis=1)
