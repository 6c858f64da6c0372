"""What an engine makes of a GPU: shapes to be replayed, a pool on it, and memory of ours behind that."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from millrace import capacity, cuda, models, plan, settings
from millrace.convert import card, convert
from millrace.convert.card import Quant
from millrace.convert.network import Form
from millrace.convert.runtime import NoCuda
from millrace.messages import Sampling
from services.engine import opening
from services.engine.model import device
from services.engine.model.captured import LEAST, Shapes
from services.engine.model.far import STAGED, FarSlots
from services.engine.model.host import HostShelf
from services.engine.model.session import OrtModel
from services.engine.model.shelf import FileShelf
from services.engine.steps.prefix import BLOCK
from services.engine.steps.scheduler import Chunk, Keep, Shelve, Step
from services.engine.steps.sequence import Sequence
from tests.kit.checkpoint import write_checkpoint
from tests.kit.gpus import Opened
from tests.kit.models import FAMILIES


@pytest.mark.parametrize(("slots", "batches"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 4, 6, 6])])
def test_rows_are_filled_up_to_few_batches(slots: int, batches: list[int]) -> None:
    """Of which none is larger than there are slots."""
    shapes = Shapes(slots, 1000)
    found = [shapes.batch(rows) for rows in range(1, slots + 1)]

    assert batches == found


def test_a_recording_reaches_as_far_as_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known by its shape, and no two shapes have one."""
    shapes = Shapes(4, 1000)
    reaches = [shapes.reach(longest) for longest in (1, LEAST, LEAST + 1, 900, 1000)]

    assert [LEAST, LEAST, 2 * LEAST, 1000, 1000] == reaches
    assert shapes.name(2, LEAST) == shapes.name(2, LEAST)
    assert 3 == len({shapes.name(*shape) for shape in ((1, 256), (2, 256), (2, 512))})


def test_of_blocks_in_our_memory_the_oldest_goes() -> None:
    """Whoever has it in hand keeps it."""
    like = np.zeros(4, np.int8)
    shelf = HostShelf(2 * like.nbytes, like)
    for name in (b"a", b"b"):
        shelf.put(name, like + ord(name))
    held = shelf.take(b"b")
    shelf.touch(b"a")
    shelf.put(b"c", like + 1)

    assert [True, False, True] == [name in shelf for name in (b"a", b"b", b"c")]
    assert held is not None and (held == ord("b")).all()
    found = shelf.take(b"c")
    assert found is not None and np.array_equal(like + 1, found) and shelf.take(b"b") is None


@pytest.mark.parametrize("quant", ["fp16", "bf16"])
def test_blocks_go_to_the_pool_to_us_and_back(tmp_path: Path, gpu: Opened, quant: Quant) -> None:
    """More of them than are on their way at once, to slots whose length is no whole number of blocks; and to
    a file, from which they come back as they were."""
    write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    of = card.load(convert(tmp_path / "hub", tmp_path / "m", quant, device="cuda", accept=True))
    count = STAGED + 3
    slots = FarSlots(gpu(), of, 2, (count + 2) * BLOCK - 5, count)
    rng = np.random.default_rng(0)
    shape = slots.block.shape
    blocks = [rng.integers(0x7C00, size=shape, dtype=np.uint16).view(slots.block.dtype) for _ in range(count)]
    slots.fetch(1, BLOCK, blocks)
    places = rng.permutation(count).tolist()
    slots.keep(1, BLOCK, places)
    kept = list(slots.contents(places))
    slots.load(0, 0, places[5:9])
    slots.keep(0, 0, places[:4])
    moved = list(slots.contents(places[:5]))
    shelf = FileShelf(tmp_path / "shelf", 2 * count * slots.block.nbytes, "a kind", slots.block)
    for i, block in enumerate(kept):
        shelf.put(bytes([i + 1] * 32), block)
    found = [shelf.take(bytes([i + 1] * 32)) for i in range(count)]

    assert of.token_bytes * BLOCK == slots.block.nbytes
    assert all(b is not None and np.array_equal(a, b) for a, b in zip(blocks, found, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(blocks, kept, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip([*blocks[5:9], blocks[4]], moved, strict=True))


@pytest.mark.parametrize("captures", [True, False])
def test_an_engine_on_a_gpu_keeps_prefixes_there_and_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captures: bool
) -> None:
    """As its settings say; ONNX Runtime's memory of the processor stands for the GPU's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu = device.Gpu
    monkeypatch.setattr(device, "Gpu", lambda number, **given: gpu(number, "cpu", **given))
    write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    folder = convert(tmp_path / "hub", tmp_path / "m", device="cuda", accept=True)
    given = settings.Engine(
        device="cuda", slots=2, max_len=64, prefix_cache_mb=1, prefix_host_mb=3, cuda_graphs=captures
    )
    model = opening.real(models.find(str(folder), ""), given, cuda.Device("A"))

    assert isinstance(model, OrtModel) and isinstance(model.shelf, HostShelf)
    assert isinstance(model._slots, FarSlots)
    assert (1 << 20) // model.block.nbytes == model.places > 0
    assert (3 << 20) // model.block.nbytes == model.shelf.places
    model.copy([Keep(0, 0, [0, 1]), Shelve(b"a", 0), Shelve(b"b", 1)])
    lies = np.frombuffer(model._slots._rooms._memory, np.uint8)
    assert all(np.shares_memory(lies, model.shelf.take(name)) for name in (b"a", b"b"))
    assert captures == (model._shapes is not None)
    fitting = plan.fits(models.find(str(folder), ""), given, capacity.Memory(1 << 40, 1 << 40, gpu=True))
    assert model._slots.bytes <= fitting.slots_bytes + fitting.prefixes
    opening.warm_up(model)


@pytest.mark.parametrize(("capability", "refused"), [(7.5, True), (8.0, False), (0.0, False)])
def test_bfloat16_is_refused_where_it_cannot_be_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: float, refused: bool
) -> None:
    """By the model, before anything is loaded; a device of which nothing is known is tried. On a processor it
    is refused as every folder for CUDA is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    folder = convert(tmp_path / "hub", tmp_path / "m", "bf16", device="cuda", accept=True)
    model, given = models.find(str(folder), ""), settings.Engine(device="cuda", slots=2, max_len=64)

    def nowhere(number: int, **given: Any) -> None:
        raise NoCuda("it was tried")

    monkeypatch.setattr(device, "Gpu", nowhere)
    with pytest.raises(settings.SettingError) as said:
        opening.real(model, given, cuda.Device("A", capability=capability))

    expected = "compute capability 7.5, and bfloat16 needs 8.0" if refused else "it was tried"
    assert expected in str(said.value)
    with pytest.raises(ValueError, match="convert --device cpu"):
        opening.real(model, settings.Engine())


def test_memory_that_is_not_free_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All of it is taken at the start; the log says what there is instead."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 90000 kB\nMemAvailable: 20480 kB\n")
    asked = [settings.Engine(prefix_host_mb=room, sysroot=str(tmp_path)) for room in (10, 11)]

    assert [10 << 20, 10 << 20] == [opening.host_bytes(given) for given in asked]
    (line,) = caplog.messages
    assert "memory for prefixes of 10.5 MB, not of 11 MB" == line


def test_weights_are_there_once(tmp_path: Path, gpu: Opened) -> None:
    """A session that is opened later has those that are there: its file of words is empty by then."""
    write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    folder = convert(tmp_path / "hub", tmp_path / "m", device="cuda", accept=True)
    model = OrtModel(folder, 1, 16, max_len=64, device=gpu())
    graph = onnx.load(folder / model.card.graphs["mixed"], load_external_data=False).graph
    (words,) = (each.external_data for each in graph.initializer if each.name == "embed")
    at = {each.key: each.value for each in words}
    found = []
    for spoilt in (False, True):
        if spoilt:
            with (folder / at["location"]).open("r+b") as file:
                file.seek(int(at["offset"]))
                file.write(bytes(int(at["length"])))
            model.sessions[Form.MIXED] = model._opened(Form.MIXED)
            model._bindings.clear()
        model.run(Step([], Chunk(Sequence("a", 5, [1, 2, 3, 4, 5], Sampling(0), 9, epoch=1, slot=0), 0, 5)))
        found.append(model.logits[:1].copy())

    assert np.array_equal(found[0], found[1])


class Unrecordable:
    """A session that cannot be recorded, as it turns out when it is tried."""

    def __init__(self, session: Any):
        self.io_binding = session.io_binding

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert options is not None
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_step_that_cannot_be_recorded_is_taken_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, and steps come as they are from then on."""
    write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    folder = convert(tmp_path / "hub", tmp_path / "m", device="cuda", accept=True)
    plain, model = (
        OrtModel(folder, 4, 16, max_len=64, device=device.Gpu(0, "cpu", captures=captures))
        for captures in (False, True)
    )
    model.sessions[Form.ROWS] = Unrecordable(model.sessions[Form.ROWS])
    rows = [Sequence(f"{i}", 5, [i, 2, 3, 4, 5], Sampling(0), 9, epoch=1, slot=i) for i in range(3)]
    found = []
    for one in (plain, model):
        for row in rows:
            row.computed = 0
            one.run(Step([], Chunk(row, 0, 4)))
            row.computed = 4
        found.append(one.run(Step(rows, None)).full().copy())

    assert np.array_equal(found[0], found[1])
    assert "not recorded as CUDA graphs any more: operation not permitted" in caplog.text
    assert model._shapes is None
