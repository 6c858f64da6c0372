"""A GPU's graph as a processor can compute it: to be measured and tried, for it is slow.

The norms of heads, which attention has in itself on a GPU alone, become operators before it.

ONNX Runtime's processor moves bfloat16 and casts it, but has no kernels that reckon in it. Each operator that
does becomes one of fp32, between casts: what it reads is widened, what it gives is rounded. So does a GPU,
whose products are summed in fp32; what it rounds within attention is not rounded here. Inputs, outputs and
weights are as they were.
"""

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from millrace.convert.graph import BFLOAT16, Array
from millrace.convert.runtime import ort, session

RECKON = ("MatMul", "GroupQueryAttention", "SimplifiedLayerNormalization", "ScaledSiLU", "Mul")
"""Those that a graph has in bfloat16; what else reads it there casts it, or takes it from here to there."""

NORMS = slice(14, 16)
"""Where GroupQueryAttention reads the gains of its heads' norms: of queries, and of keys."""


def computable(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for change in (_norms_apart, _rounding):
        nodes = list(change(made.graph))
        del made.graph.node[:]
        made.graph.node.extend(nodes)
    return made


def opened(path: Path, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    graph = onnx.load(path, load_external_data=False)
    return session(computable(graph).SerializeToString(), options, path.parent)


def _norms_apart(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        gains = node.input[NORMS]
        if node.op_type != "GroupQueryAttention" or not gains:
            yield node
            continue
        (gain,) = (t for t in graph.initializer if t.name == gains[0])
        known = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kv, d = known["kv_num_heads"], gain.dims[0]
        qkv, eps = node.input[0], known.pop("qk_norm_epsilon")

        def constant(name: str, numbers: list[int], qkv: str = qkv) -> str:
            made = helper.make_tensor(f"{qkv}.{name}", TensorProto.INT64, [len(numbers)], numbers)
            graph.initializer.append(made)
            return made.name

        parts = [f"{qkv}.{part}" for part in "qkv"]
        normed = [f"{part}.normed" for part in parts[:2]]
        yield helper.make_node("Reshape", [qkv, constant("heads", [0, 0, -1, d])], [f"{qkv}.by_head"])
        sizes = constant("sizes", [known["num_heads"], kv, kv])
        yield helper.make_node("Split", [f"{qkv}.by_head", sizes], parts, axis=2)
        for of in zip(parts, gains, normed, strict=False):
            yield helper.make_node("SimplifiedLayerNormalization", of[:2], of[2:], axis=-1, epsilon=eps)
        yield helper.make_node("Concat", [*normed, parts[2]], [f"{qkv}.joined"], axis=2)
        flat = constant("flat", [0, 0, (known["num_heads"] + 2 * kv) * d])
        yield helper.make_node("Reshape", [f"{qkv}.joined", flat], [f"{qkv}.normed"])
        inputs = [f"{qkv}.normed", *node.input[1 : NORMS.start - 2]]
        yield helper.make_node(node.op_type, inputs, node.output, domain=node.domain, **known)


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


def run(on: ort.InferenceSession, names: Iterable[str], given: Mapping[str, Array]) -> list[Array]:
    """As the session's own, which knows no arrays of bfloat16."""
    made = on.run_with_ort_values(names, {name: _value(array) for name, array in given.items()})
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
