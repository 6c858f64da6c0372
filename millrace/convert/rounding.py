"""A graph in bfloat16 as a processor can compute it: to be measured and tried, for it is slow.

ONNX Runtime's processor moves bfloat16 and casts it, but has no kernels that reckon in it. Each operator that
does becomes one of fp32, between casts: what it reads is widened, what it gives is rounded. So does a GPU,
whose products are summed in fp32; what it rounds within attention is not rounded here. Inputs, outputs and
weights are as they were.
"""

import ctypes
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from millrace.convert.graph import BFLOAT16, Array
from millrace.convert.runtime import ort

RECKON = ("MatMul", "GroupQueryAttention", "SimplifiedLayerNormalization")
"""Those that a graph has in bfloat16; what else reads it there casts it, or takes it from here to there."""


def rounded(graph: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    del made.graph.node[:]
    made.graph.node.extend(_rounding(graph.graph))
    return made


def _rounding(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    narrow = {t.name for t in graph.initializer if t.data_type == TensorProto.BFLOAT16}
    narrow |= {i.name for i in graph.input if i.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    widened: set[str] = set()
    for node in graph.node:
        if node.op_type == "Cast":
            is_narrow = helper.get_node_attr_value(node, "to") == TensorProto.BFLOAT16
        else:
            is_narrow = node.input[0] in narrow
        if is_narrow:
            narrow.update(node.output)
        if not is_narrow or node.op_type not in RECKON:
            yield node
            continue
        read = {name: f"{name}.wide" for name in node.input if name in narrow}
        for name in sorted(read.keys() - widened):
            yield _cast(name, read[name], TensorProto.FLOAT)
        widened |= read.keys()
        wide = NodeProto()
        wide.CopyFrom(node)
        wide.input[:] = [read.get(name, name) for name in node.input]
        wide.output[:] = [f"{name}.exact" for name in node.output]
        yield wide
        for name in node.output:
            yield _cast(f"{name}.exact", name, TensorProto.BFLOAT16)


def _cast(name: str, into: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [name], [into], f"{into}.cast", to=kind)


def run(session: ort.InferenceSession, names: Iterable[str], given: Mapping[str, Array]) -> list[Array]:
    """As the session's own, which knows no arrays of bfloat16."""
    made = session.run_with_ort_values(names, {name: _value(array) for name, array in given.items()})
    return [_array(value) for value in made]


def _value(array: Array) -> ort.OrtValue:
    if array.dtype == BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array(value: ort.OrtValue) -> Array:
    if value.element_type() != TensorProto.BFLOAT16:
        found: Array = value.numpy()
        return found
    shape = value.shape()
    words = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr())
    return np.array(words, np.uint16).view(BFLOAT16).reshape(shape)
