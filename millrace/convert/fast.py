"""The graphs of fast mode, made of the exact ones: a prompt's chunk attends to keys and values in fp32.

ONNX Runtime's attention over 8 bits takes a chunk two to three times as long as over fp32. What the prompt's
fp32 memory holds are the 8-bit keys and values all the same, widened:

    exact   q, k, v -> attention, which turns q and k, rounds k and v, and writes them to the slot
    fast    q, k, v -> q and k are turned, k and v rounded and widened -> attention, which writes to fp32
                                               `-> their codes, for the slot

So a slot holds all that is to be known of a prompt; what lies in fp32 can be had from it again. Rows are as
they were, and so are all weights: both kinds of graphs share one copy of them.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from millrace.convert.graph import CONTRIB
from millrace.convert.network import Form

FORMS = (Form.MIXED, Form.CHUNK, Form.FILL)
"""Those with a chunk; the first has all the weights."""

SCALES = "scales.npy"
"""The file of `scales`, beside the graphs."""

SIZES = "qkv.sizes"
OF_ROUNDED = ("do_rotary", "k_quant_type", "v_quant_type", "kv_cache_bit_width")
"""Attributes that attention over fp32, of keys that are turned already, does without."""


def faster(exact: onnx.ModelProto) -> onnx.ModelProto:
    """The same step, its chunk computed fast. Two more inputs: `chunk.start`, where the chunk begins, and
    `chunk.flat`, which is -1. More outputs: each layer's codes, [1, tokens, kv_heads x head_dim]."""
    made = onnx.ModelProto()
    made.CopyFrom(exact)
    graph = made.graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    for each in (*graph.input, *graph.output):
        if each.name.startswith(("chunk.k.", "chunk.v.")):
            each.type.tensor_type.elem_type = TensorProto.FLOAT
            shapes[each.name] = [dim.dim_value for dim in each.type.tensor_type.shape.dim]
    for name in ("chunk.start", "chunk.flat"):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, [1]))
    del graph.node[:]
    for node in exact.graph.node:
        if node.op_type != "GroupQueryAttention" or not node.input[3].startswith("chunk."):
            graph.node.append(node)
            continue
        _, kv_heads, _, head_dim = shapes[node.input[3]]
        if SIZES not in shapes:
            sizes = np.array([_given(node, "num_heads"), kv_heads, kv_heads], np.int64) * head_dim
            graph.initializer.append(numpy_helper.from_array(sizes, SIZES))
            shapes[SIZES] = [3]
        graph.node.extend(_attention(node, shapes))
        for codes in _codes(node):
            shape = [1, "chunk.tokens", kv_heads * head_dim]
            graph.output.append(helper.make_tensor_value_info(codes, TensorProto.INT8, shape))
    return made


def _given(node: NodeProto, name: str) -> int:
    (found,) = (each.i for each in node.attribute if each.name == name)
    return int(found)


def _codes(node: NodeProto) -> list[str]:
    return [f"{past}.codes" for past in node.input[3:5]]


def _attention(node: NodeProto, shapes: dict[str, list[int]]) -> Iterator[NodeProto]:
    """What stands for one node of attention over 8 bits."""
    at = node.name
    parts = [f"{at}.{part}" for part in "qkv"]
    yield helper.make_node("Split", [node.input[0], SIZES], parts, f"{at}.split", axis=-1)
    if _given(node, "do_rotary"):
        for which, heads in enumerate(("num_heads", "kv_num_heads")):
            part, tables = parts[which], node.input[7:9]
            turning = 2 * shapes[tables[0]][1]
            yield helper.make_node(
                "RotaryEmbedding",
                [part, "chunk.start", *tables],
                [f"{part}.turned"],
                f"{part}.turn",
                domain=CONTRIB,
                num_heads=_given(node, heads),
                # 0 says that a whole head turns
                rotary_embedding_dim=turning if turning < shapes[node.input[3]][3] else 0,
            )
            parts[which] += ".turned"
    for which, given, codes in zip((1, 2), node.input[12:14], _codes(node), strict=True):
        part, scale = parts[which], f"{parts[which]}.scale"
        # Flattened when it runs: what can be done before would be a weight that the exact graphs have not.
        yield helper.make_node("Reshape", [given, "chunk.flat"], [scale], f"{part}.flat")
        yield helper.make_node(
            "QuantizeLinear",
            [part, scale],
            [codes],
            f"{part}.round",
            axis=-1,
            output_dtype=TensorProto.INT8,
        )
        yield helper.make_node("DequantizeLinear", [codes, scale], [f"{part}.wide"], f"{part}.widen", axis=-1)
        parts[which] += ".wide"
    wide = NodeProto()
    wide.CopyFrom(node)
    wide.input[:3] = parts
    del wide.input[7:]
    kept = [each for each in node.attribute if each.name not in OF_ROUNDED]
    del wide.attribute[:]
    wide.attribute.extend(kept)
    yield wide


def scales(exact: onnx.ModelProto, folder: Path, kv_heads: int, head_dim: int) -> npt.NDArray[np.float32]:
    """What a step of each layer's keys and values is worth, [layers, 2, kv_heads, 1, head_dim]."""
    found = {
        t.name: numpy_helper.to_array(t, str(folder))
        for t in exact.graph.initializer
        if t.name.startswith(("k_scale.", "v_scale."))
    }
    ordered = [found[f"{kv}_scale.{i}"] for i in range(len(found) // 2) for kv in "kv"]
    shape = np.broadcast_shapes((1, kv_heads, 1, head_dim), *(each.shape for each in ordered))
    wide = np.concatenate([np.broadcast_to(each, shape) for each in ordered])
    return wide.reshape(-1, 2, *shape[1:])
