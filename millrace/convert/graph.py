"""Writing an ONNX graph: a node is a call that returns the name of its result, a weight goes to its file."""

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

OPSET = 21
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
ALIGN = 4096  # ONNX Runtime maps external data by pages
INLINE = 1024  # bytes; smaller tensors stay in the graph's own file

BFLOAT16: type[np.generic] = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16).type
"""NumPy has none of its own; ONNX brings one, whose arrays are no buffers."""

KINDS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(BFLOAT16): TensorProto.BFLOAT16,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.bool_): TensorProto.BOOL,
}


class Store:
    """Where the weights go: the data file that the graphs of one model share, hashed as it is written."""

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._known: dict[str, TensorProto] = {}
        self._hash = hashlib.sha256()

    def put(self, name: str, make: Callable[[], Array]) -> TensorProto:
        if name not in self._known:
            array = np.ascontiguousarray(make())
            if array.nbytes < INLINE:
                self._known[name] = numpy_helper.from_array(array, name)
            else:
                self._write(b"\0" * (-self._file.tell() % ALIGN))
                at = self._file.tell()
                self._write(array.view(np.uint8).data.cast("B"))
                self._known[name] = external(name, array, self.path.name, at)
        return self._known[name]

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)

    def flush(self) -> None:
        """What was put is in the file."""
        self._file.flush()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class Inline:
    """Weights inside the graph itself, for graphs that are run once and thrown away."""

    def put(self, name: str, make: Callable[[], Array]) -> TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(make()), name)


def external(name: str, array: Array, file: str, at: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=KINDS[array.dtype], dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", str(at)), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def own(graph: onnx.GraphProto) -> dict[str, int]:
    """Weights of which each session on a GPU makes what its kernels read, in bytes; it shares the others."""
    names = {name for node in graph.node if node.op_type == "MatMulNBits" for name in node.input}
    found = (each for each in graph.initializer if each.name in names)
    widths = ((each, helper.tensor_dtype_to_np_dtype(each.data_type).itemsize) for each in found)
    return {each.name: math.prod(each.dims) * width for each, width in widths}


class Graph:
    def __init__(self, name: str, store: Store | Inline):
        self._name = name
        self._store = store
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._weights: dict[str, TensorProto] = {}
        self._made: dict[tuple[Any, ...], list[str]] = {}

    def input(self, name: str, dtype: Any, shape: Iterable[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, KINDS[np.dtype(dtype)], list(shape)))
        return name

    def output(self, name: str, dtype: Any, shape: Iterable[int | str]) -> None:
        """Declare a result, which its node has named so, as one of the graph's."""
        self._outputs.append(helper.make_tensor_value_info(name, KINDS[np.dtype(dtype)], list(shape)))

    def call(self, result: str, name: str) -> None:
        """Give the newest result a name of its own."""
        assert list(self._nodes[-1].output) == [result], result
        self._nodes[-1].output[0] = name

    def weight(self, name: str, make: Callable[[], Array]) -> str:
        """A weight, made only if no graph before this one has put it into the store."""
        if name not in self._weights:
            self._weights[name] = self._store.put(name, make)
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        """A small value, by its content."""
        array = np.array(value, dtype=dtype)
        text = "_".join(map(str, array.reshape(-1).tolist()))
        return self.weight(f"{array.dtype}{list(array.shape)}_{text}", lambda: array)

    def node(
        self,
        op: str,
        *inputs: str,
        outputs: int = 1,
        domain: str = "",
        named: tuple[str, ...] = (),
        **attributes: Any,
    ) -> str:
        return self.nodes(op, *inputs, outputs=outputs, domain=domain, named=named, **attributes)[0]

    def nodes(
        self,
        op: str,
        *inputs: str,
        outputs: int,
        domain: str = "",
        named: tuple[str, ...] = (),
        **attributes: Any,
    ) -> list[str]:
        """All results of a node; `named` fixes the names of the last ones. The same node is made once."""
        key = (op, inputs, domain, named, repr(sorted(attributes.items())))
        if key not in self._made:
            count = len(self._nodes)
            names = [f"{op}_{count}_{i}" for i in range(outputs - len(named))] + list(named)
            self._nodes.append(
                helper.make_node(op, list(inputs), names, f"{op}_{count}", domain=domain, **attributes)
            )
            self._made[key] = names
        return self._made[key]

    def contrib(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        return self.node(op, *inputs, outputs=outputs, domain=CONTRIB, **attributes)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._weights.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="millrace")
