"""Logits against an independent float64 implementation: every family, every quantisation."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, numpy_helper

from millrace.convert import calibrate, card, convert
from millrace.convert.card import Quant
from millrace.convert.computable import computable
from millrace.convert.network import Form
from millrace.convert.runtime import ort, session
from millrace.convert.safetensors import Weights
from millrace.messages import Sampling
from services.engine.model import prepare
from services.engine.model.device import Gpu
from services.engine.model.session import OrtModel
from services.engine.model.shelf import FileShelf
from services.engine.steps.prefix import BLOCK
from services.engine.steps.scheduler import Chunk, Fetch, Keep, Shelve, Step, Swap
from services.engine.steps.sequence import Sequence
from tests.kit import reference
from tests.kit.checkpoint import bf16 as bf16_bits
from tests.kit.checkpoint import random_tensors, write_checkpoint
from tests.kit.models import FAMILIES, whole

Floats = npt.NDArray[np.float32]

SLOTS = 3
GPU_HALVES: tuple[Quant, ...] = ("fp16", "bf16")


def computed(model: OrtModel, tokens: list[int], *, chunk: int, prompt: int = 0) -> tuple[Floats, list[int]]:
    """Logits, and after which tokens: the first half in slot 0 chunk by chunk, then one by one as a row of
    a ragged batch, beside a prompt that is being computed. `prompt`: how many of them fast mode computes."""
    main = Sequence("main", len(tokens), tokens, Sampling(0), 1, epoch=1, slot=0)
    beside = Sequence("beside", 3, [5, 6, 7, *tokens], Sampling(0), 1, epoch=1, slot=1)
    other = Sequence("other", len(tokens), tokens[::-1], Sampling(0), 1, epoch=1, slot=2)
    model.run(Step([], Chunk(beside, 0, 3)))
    beside.computed = 3
    found, at = [], []
    while main.computed < len(tokens) // 2:
        count = min(chunk, len(tokens) // 2 - main.computed)
        part = Sequence("main", prompt, tokens[: main.computed + count], Sampling(0), 1, epoch=1, slot=0)
        model.run(Step([], Chunk(part, main.computed, count)))
        main.computed += count
        found.append(model.logits[0].copy())
        at.append(main.computed - 1)
    while main.computed < len(tokens):
        fill = Chunk(other, other.computed, 2) if other.computed + 2 < len(tokens) else None
        model.run(Step([main, beside], fill))
        found.append(model.logits[0].copy())
        at.append(main.computed)
        main.computed += 1
        beside.computed += 1
        other.computed += 2 if fill else 0
    return np.array(found), at


def rounded(folder: Path, config: dict[str, Any]) -> Any:
    """Keys and values in the steps that the conversion chose, read from its graph."""
    import onnx

    graph = onnx.load(folder / "rows.onnx").graph
    found = {
        t.name: onnx.numpy_helper.to_array(t, str(folder)) for t in graph.initializer if "_scale." in t.name
    }

    def kv(i: int, k: reference.Wide, v: reference.Wide) -> tuple[reference.Wide, reference.Wide]:
        def of(name: str, x: reference.Wide) -> reference.Wide:
            scale = found[f"{name}.{i}"].astype(np.float64)
            scale = scale.reshape(config["num_key_value_heads"], 1, -1) if scale.size > 1 else scale
            return np.clip(np.rint(x / scale), -128, 127) * scale

        return of("k_scale", k), of("v_scale", v)

    return kv


def error(found: Floats, expected: reference.Wide) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def words(config: dict[str, Any], length: int, seed: int = 3) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(0, config["vocab_size"], length).tolist()
    return drawn


@pytest.mark.parametrize("name", FAMILIES)
def test_fp32(tmp_path: Path, name: str) -> None:
    """Every family, to the precision of fp32."""
    config = FAMILIES[name]
    write_checkpoint(tmp_path / "hub", config)
    model = OrtModel(convert(tmp_path / "hub", tmp_path / "m", "fp32", cache="fp32"), SLOTS, 16, max_len=256)
    tokens = words(config, 45)
    found, at = computed(model, tokens, chunk=6)
    expected = reference.logits(
        config, random_tensors(config), tokens, length=config["max_position_embeddings"]
    )

    assert error(found, expected[at]) < 2e-5


@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_quantised(tmp_path: Path, name: str, quant: Quant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family in every quantisation, with its roundings modelled."""
    monkeypatch.setattr(calibrate, "arithmetic", lambda *given: None)  # no layer in another
    config = FAMILIES[name]
    write_checkpoint(tmp_path / "hub", config)
    folder = convert(tmp_path / "hub", tmp_path / "m", quant, accept=True)
    model = OrtModel(folder, SLOTS, 16, max_len=256)
    weights, linear, kv = random_tensors(config), reference.LINEARS[quant], rounded(folder, config)
    errors = []
    for seed in range(6):
        tokens = words(config, 24, seed)
        found, at = computed(model, tokens, chunk=6)
        length = config["max_position_embeddings"]
        expected = reference.logits(config, weights, tokens, linear, kv, length)
        errors.append(error(found, expected[at]))

    # A value that lies between two steps may be rounded the other way in fp32, and everything after it
    # follows; a text in which none does agrees to the last digits.
    assert sorted(errors)[1] < 2e-5
    assert max(errors) < 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_fast(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast mode has the same roundings: every family is as close to its reference as it is without."""
    monkeypatch.setattr(calibrate, "arithmetic", lambda *given: None)
    config = FAMILIES[name]
    write_checkpoint(tmp_path / "hub", config)
    folder = convert(tmp_path / "hub", tmp_path / "m", accept=True)
    graphs = prepare.prepared(folder, tmp_path)
    assert graphs
    model = OrtModel(
        folder, SLOTS, 16, max_len=256, graphs=graphs, fast=prepare.faster(folder, tmp_path, graphs)
    )
    weights, kv = random_tensors(config), rounded(folder, config)
    errors = []
    for seed in range(6):
        tokens = words(config, 24, seed)
        found, at = computed(model, tokens, chunk=5, prompt=12)
        length = config["max_position_embeddings"]
        expected = reference.logits(config, weights, tokens, reference.LINEARS["int8"], kv, length)
        errors.append(error(found, expected[at]))

    assert sorted(errors)[1] < 2e-5  # what `test_quantised` says of it holds here, too
    assert max(errors) < 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_for_cuda(tmp_path: Path, name: str) -> None:
    """The graphs for a GPU, on a processor: every family, to the precision of 16 bits."""
    config = FAMILIES[name]
    write_checkpoint(tmp_path / "hub", config)
    folder = convert(tmp_path / "hub", tmp_path / "m", device="cuda", accept=True)
    model = OrtModel(folder, SLOTS, 16, max_len=256, device=Gpu(0, "cpu"))
    tokens = words(config, 45)
    found, at = computed(model, tokens, chunk=6)
    expected = reference.logits(
        config, random_tensors(config), tokens, length=config["max_position_embeddings"]
    )

    # Keys with large biases have few of their 16 bits left for the rest.
    assert error(found, expected[at]) < (3e-2 if name == "loud keys" else 1e-2)


@pytest.mark.parametrize("name", ["llama2", "qwen3", "gemma2"])
def test_bfloat16_for_cuda(tmp_path: Path, name: str) -> None:
    """The graphs of fp16 in another kind, with a checkpoint's weights bit for bit. As a processor can compute
    them they are as good as 8 bits of a number can be, over a device's memory of 16 bits; and a prefix that
    comes from a file is what was kept."""
    import onnx

    config = FAMILIES[name]
    write_checkpoint(tmp_path / "hub", config, dtype="BF16")
    half, folder = (
        convert(tmp_path / "hub", tmp_path / quant, quant, device="cuda", accept=True) for quant in GPU_HALVES
    )
    for form in Form:
        path = f"{form.value}.onnx"
        fp16, bf16 = (onnx.load(each / path, load_external_data=False) for each in (half, folder))
        assert [node.op_type for node in fp16.graph.node] == [node.op_type for node in bf16.graph.node]
        kept = [each.data_type for each in bf16.graph.initializer]
        kept += [each.type.tensor_type.elem_type for each in (*bf16.graph.input, *bf16.graph.output)]
        kept += [a.i for node in bf16.graph.node if node.op_type == "Cast" for a in node.attribute]
        assert TensorProto.BFLOAT16 in kept and TensorProto.FLOAT16 not in kept
    at = "model.layers.0.self_attn.o_proj"
    (stored,) = (each for each in bf16.graph.initializer if each.name == f"{at}.bf16")
    bits = numpy_helper.to_array(stored, str(folder)).view(np.uint16)
    assert np.array_equal(Weights(tmp_path / "hub").raw(f"{at}.weight").T, bits)
    of, other = card.load(folder), card.load(half)
    assert of.digest != other.digest and of.token_bytes == other.token_bytes
    assert (folder / of.data).stat().st_size == (half / other.data).stat().st_size

    model = OrtModel(folder, SLOTS, 64, max_len=256, prefix_bytes=1 << 20, device=Gpu(0, "cpu"))
    tokens = words(config, 45)
    found, after = computed(model, tokens, chunk=6)
    weights = {
        name: (bf16_bits(array).astype(np.uint32) << 16).view(np.float32)
        for name, array in random_tensors(config).items()
    }
    expected = reference.logits(config, weights, tokens, length=config["max_position_embeddings"])
    assert 1e-3 < error(found, expected[after]) < 5e-2

    row = Sequence("row", 41, tokens[:41], Sampling(0), 1, epoch=1, slot=0)
    model.run(Step([], Chunk(row, 0, 41)))
    count = 40 // BLOCK
    rest = Chunk(row, count * BLOCK, 41 - count * BLOCK)
    model.run(Step([], rest))
    wanted = model.logits.copy()
    model.shelf = FileShelf(tmp_path, 1 << 20, model.kind, model.block)
    names = [bytes([i + 1] * 32) for i in range(count)]
    model.copy([Keep(0, 0, list(range(count))), *(Shelve(name, i) for i, name in enumerate(names))])
    row.slot = 1
    model.copy([Fetch(1, 0, [model.shelf.take(name) for name in names])])
    model.run(Step([], rest))

    assert np.array_equal(wanted, model.logits)


def test_a_gpus_memory(tmp_path: Path) -> None:
    """What lies on a device, is sent there and fetched from there, gives what memory of our own does; and
    sequences change slots in it. ONNX Runtime's own memory of the processor stands for the device."""
    import onnx

    config = FAMILIES["qwen3"]
    write_checkpoint(tmp_path / "hub", config)
    folder = convert(tmp_path / "hub", tmp_path / "m", device="cuda", accept=True)
    for form in Form:
        path = folder / f"{form.value}.onnx"
        path.write_bytes(computable(onnx.load(path, load_external_data=False)).SerializeToString())
    tokens = words(config, 24)
    near, far = (OrtModel(folder, SLOTS, 16, max_len=64, device=each) for each in (None, Gpu(0, "cpu")))
    expected, found = (computed(model, tokens, chunk=6)[0] for model in (near, far))

    assert np.array_equal(expected, found)

    row = Sequence("row", 9, tokens, Sampling(0), 1, epoch=1, slot=0)
    other = Sequence("other", 4, tokens[::-1], Sampling(0), 1, epoch=1, slot=1)
    told = []
    for model in (near, far):
        model.run(Step([], Chunk(row, 0, 9)))
        model.run(Step([], Chunk(other, 0, 4)))
        row.computed, other.computed, row.slot, other.slot = 9, 4, 1, 0
        step = Step([other, row], None, swaps=(Swap(0, 9, 1, 4),))
        candidates = model.run(step)
        told.append((candidates.ids, candidates.logits, candidates.full().copy()))
        row.computed, other.computed, row.slot, other.slot = 0, 0, 0, 1

    assert all(np.array_equal(a, b) for a, b in zip(*told, strict=True))
    assert all(len(each) == 2 for each in told[1])


@pytest.mark.parametrize("quant", reference.BLOCKS)
def test_blocks_for_cuda(tmp_path: Path, quant: Quant) -> None:
    """Weights by blocks, with their roundings modelled."""
    config = whole(FAMILIES["qwen3"])
    write_checkpoint(tmp_path / "hub", config)
    folder = convert(tmp_path / "hub", tmp_path / "m", quant, device="cuda", accept=True)
    model = OrtModel(folder, SLOTS, 16, max_len=256, device=Gpu(0, "cpu"))
    tokens = words(config, 45)
    found, at = computed(model, tokens, chunk=6)
    length = config["max_position_embeddings"]
    weights = random_tensors(config)
    expected = reference.logits(config, weights, tokens, reference.BLOCKS[quant], length=length)

    assert error(found, expected[at]) < 1e-2


ON_GPU = {
    *("Add", "Cast", "Concat", "Div", "Gather", "GatherElements", "GatherND", "Gelu", "GroupQueryAttention"),
    *(
        "Identity",
        "MatMul",
        "MatMulNBits",
        "Mod",
        "Mul",
        "Reshape",
        "ScaledSiLU",
        "SimplifiedLayerNormalization",
    ),
    *("SkipSimplifiedLayerNormalization", "Split", "Squeeze", "Tanh", "TopK", "Unsqueeze"),
}
"""Operators that onnxruntime-gpu 1.31.1 gave to CUDA, of these types, and ran without cuDNN."""


@pytest.mark.parametrize("quant", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_graphs_for_cuda(tmp_path: Path, family: str, quant: Quant) -> None:
    """Every form opens, has operators with a kernel there, and keeps keys and values in 16 bits. Decoding is
    recorded: no operator of it has something copied from this machine's memory, as unequal splits have."""
    import onnx

    write_checkpoint(tmp_path / "hub", whole(FAMILIES[family]) | {"vocab_size": 8192})
    folder = convert(tmp_path / "hub", tmp_path / "m", quant, device="cuda", accept=True)
    for form in Form:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        made = session(str(folder / f"{form.value}.onnx"), options)
        nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
        operators = {node.op_type for node in nodes}
        assert operators <= ON_GPU and ("MatMulNBits" in operators) == (quant != "fp16")
        parts = [len(node.input) == 1 or form is Form.MIXED for node in nodes if node.op_type == "Split"]
        assert parts and all(parts)
        kept = {each.type for each in (*made.get_inputs(), *made.get_outputs()) if ".k." in each.name}
        assert kept == {"tensor(float16)"}


def test_loud_keys_get_a_scale_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large biases of a few key channels do not cost the others their precision."""
    config = FAMILIES["loud keys"]
    write_checkpoint(tmp_path / "hub", config)
    tokens = words(config, 45)
    expected = reference.logits(config, random_tensors(config), tokens)

    def cost(name: str) -> float:  # of an 8-bit cache; the weights stay fp32
        model = OrtModel(
            convert(tmp_path / "hub", tmp_path / name, "fp32", accept=True), SLOTS, 16, max_len=256
        )
        found, at = computed(model, tokens, chunk=6)
        return error(found, expected[at])

    chosen = cost("chosen")
    monkeypatch.setattr(calibrate, "coarse", lambda seen: False)

    assert chosen < 0.5 * cost("one scale")
