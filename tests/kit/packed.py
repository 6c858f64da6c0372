"""Folders whose linear layers are in 4 bits, packed as GPTQ and AWQ pack them, code by code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.kit.checkpoint import Tensors, random_tensors, write_safetensors

AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def write_packed(
    folder: Path,
    config: dict[str, Any],
    method: str,
    *,
    group: int,
    symmetric: bool = False,
    shuffled: bool = False,
    form: str = "gptq",
    zero_of: int | None = None,
    **more: Any,
) -> Tensors:
    """Random codes for every linear layer but the head; what they stand for, in full, by the usual names."""
    rng = np.random.default_rng(5)
    tensors: Tensors = {}
    meant: Tensors = {}
    for name, drawn in random_tensors(config).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = meant[name] = drawn
            continue
        n, k = drawn.shape
        size = k if group == -1 else group
        codes = rng.integers(0, 16, (k, n))
        scales = (rng.random((k // size, n)) * 0.3 / np.sqrt(k) + 0.01).astype(np.float16)
        zeros = np.full((k // size, n), 8) if symmetric else rng.integers(1, 16, (k // size, n))
        # Layers with the same input have the same order of channels.
        of = np.random.default_rng(k).permutation(k) // size if shuffled else np.arange(k) // size
        meant[name] = ((codes - zeros[of]).astype(np.float32) * scales[of].astype(np.float32)).T
        at = name.removesuffix(".weight")
        tensors[f"{at}.scales"] = scales
        if method == "awq":
            tensors[f"{at}.qweight"] = words_across(codes, AWQ)
            tensors[f"{at}.qzeros"] = words_across(zeros, AWQ)
            continue
        tensors[f"{at}.qweight"] = words_across(codes.T, range(8)).T
        stored = np.full_like(zeros, zero_of) if zero_of is not None else zeros - (form == "gptq")
        tensors[f"{at}.qzeros"] = words_across(stored, range(8))
        tensors[f"{at}.g_idx"] = of.astype(np.int32)
        tensors[f"{at}.bias"] = np.zeros(n, np.float16)
    given: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": group, **more}
    if method == "gptq":
        given |= {"sym": symmetric, "desc_act": shuffled, "checkpoint_format": form}
    else:
        given |= {"version": "gemm", "zero_point": True}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {**given, **more}}))
    write_safetensors(folder / "model.safetensors", tensors)
    return meant


def words_across(codes: npt.NDArray[Any], order: Any) -> npt.NDArray[np.int32]:
    """Eight neighbours of a row in a word; in its nibble i lies the neighbour order[i]."""
    rows, columns = codes.shape
    words = np.zeros((rows, columns // 8), np.uint32)
    for nibble, neighbour in enumerate(order):
        words |= codes[:, neighbour::8].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def unpacked(folder: Path, name: str, order: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
    """A linear layer of a converted model in full, by the definition of MatMulNBits."""
    import onnx

    graph = onnx.load(folder / "rows.onnx").graph
    (node,) = (n for n in graph.node if n.op_type == "MatMulNBits" and n.input[1] == f"{name}.int4")
    found = {t.name: onnx.numpy_helper.to_array(t, str(folder)) for t in graph.initializer if name in t.name}
    attributes = {a.name: a.i for a in node.attribute}
    n, k, size = attributes["N"], attributes["K"], attributes["block_size"]
    count = -(-k // size)
    bytes_ = found[f"{name}.int4"].reshape(n, count * size // 2)
    zeros = found[node.input[3]].reshape(n, -1) if len(node.input) > 3 else None
    made = np.zeros((n, k), np.float32)
    for o in range(n):
        for i in range(k):
            code = int(bytes_[o, i // 2]) >> (4 * (i % 2)) & 15
            b = i // size
            zero = 8 if zeros is None else int(zeros[o, b // 2]) >> (4 * (b % 2)) & 15
            made[o, i] = np.float32(code - zero) * np.float32(found[f"{name}.scales"].reshape(n, count)[o, b])
    if f"{name}.order" in found:
        made[:, found[f"{name}.order"]] = made.copy()
    return made
