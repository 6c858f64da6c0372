"""The benchmark for GPUs, on the processor: that it measures every case, and refuses where no GPU is."""

import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench import attention, cuda, limits
from bench.attention import Case
from millrace.convert import convert
from services.engine.model.device import Gpu
from tests.kit.checkpoint import shapes, write_checkpoint
from tests.kit.models import FAMILIES


@pytest.fixture
def rig(tmp_path: Path) -> cuda.Rig:
    write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    folder = convert(tmp_path / "hub", tmp_path / "m", device="cuda", accept=True)
    known = limits.by_ort(Gpu(0, "cpu"), copied=1 << 20, width=64)
    return cuda.Rig(
        folder, partial(Gpu, 0, "cpu"), known, 16, 1, batches=(1, 3), prompt=40, lengths=(64, 128)
    )


def test_every_case_is_measured(rig: cuda.Rig, capsys: pytest.CaptureFixture[str]) -> None:
    """With steps recorded and one by one; prompts cold, warm, and from memory."""
    cuda.engine(rig)
    lines = capsys.readouterr().out.splitlines()
    tables = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    firsts = [row[:2] for row in tables if row[0].isdigit()]

    decoding = [[batch, said] for said in ("recorded", "one by one") for batch in ("1", "3")]
    assert [*decoding, ["40", "16"], ["64"], ["128"]] == [*firsts[:5], *(row[:1] for row in firsts[5:])]


@pytest.mark.parametrize("case", [Case(3, 40), Case(2, 300, 20)])
def test_forms_of_attention_are_of_one_step(case: Case) -> None:
    """Those that a processor has find the same, decoding and beside a chunk; and write the same."""
    found, errors = [], []
    for write, past in ((attention.grouped, "k"), (attention.scattered, "past.k")):
        write(of := attention.Layers(attention.Heads(4, 2, 32), case, 2))
        attended = attention.Attended(of, Gpu(0, "cpu"), {})
        attended.run()
        sides = range(len(case.sides))
        keys = [attended.found(f"{past}.{at}.1").reshape(-1, 2 * 32 * case.length) for at in sides]
        found.append(([attended.found(f"y.{at}.1") for at in sides], [np.sort(each) for each in keys]))
        errors.append(attended.error())

    for one, other in zip(*found, strict=True):
        assert all(np.allclose(a, b, atol=2e-3, rtol=1e-2) for a, b in zip(one, other, strict=True))
    assert max(errors) < 2e-3


def test_a_form_that_finds_something_else_is_said_to_be_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its line, and by how much; the other forms are measured all the same."""

    def shorter(of: attention.Layers) -> None:
        attention.grouped(of)
        of.far["last.0"] -= 3  # keys that it does not see

    monkeypatch.setitem(attention.FORMS, "grouped", (shorter, {}))
    heads, known = attention.Heads(4, 2, 32), limits.Limits(1e9, 1e9)
    attention.show(partial(Gpu, 0, "cpu"), heads, known, (Case(2, 8),))
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split("|")[5:9] for line in lines if line.startswith("| 2 ")]

    assert ["wrong", "wrong"] == [cell.strip() for cell in row[:2]]
    assert all(float(cell) > 0 for cell in row[2:])
    assert 2 == sum("of the largest from float64" in line for line in lines)


def test_every_form_of_attention_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """And one that cannot be had says why. PagedAttention is CUDA's alone: its graph is found right, and then
    ONNX Runtime tries it in 32 bits, which no operator of the name takes."""
    heads, known = attention.Heads(4, 2, 32), limits.Limits(1e9, 1e9)
    attention.show(partial(Gpu, 0, "cpu"), heads, known, (Case(2, 8, 3),))
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split("|")[5:-1] for line in lines if line.startswith("| 2 ")]
    said = [line for line in lines if line.startswith("paged, ")]

    assert [False] * 6 + [True] * 2 == [cell.strip() == "cannot" for cell in row]
    assert [True] * 2 == ["InsertedPrecisionFreeCast_qkv" in line for line in said]


def test_a_limit_is_the_greater_of_two() -> None:
    """What has to be moved, or what has to be computed."""
    known = limits.Limits(100.0, 1000.0)

    assert [2.0, 5.0] == [known.seconds(200, 1000), known.seconds(200, 5000)]


def test_work_is_that_of_the_linear_layers(rig: cuda.Rig) -> None:
    """Two operations for each of their weights and each token; and two for each pair of tokens and channel,
    with the keys and with the values."""
    config = FAMILIES["qwen3"]
    weights = sum(math.prod(shape) for shape in shapes(config).values() if len(shape) == 2)

    assert 2 * weights == rig.products
    assert 4 * 3 * 6 * 16 * 7 * 11 == rig.attention(7, 11)


def test_without_a_gpu_it_says_why() -> None:
    """And measures nothing."""
    done = subprocess.run([sys.executable, "-m", "bench.cuda"], capture_output=True, text=True, check=False)

    assert 2 == done.returncode and "" == done.stdout
    assert "bench.cuda: --device cuda: " in done.stderr and "driver" in done.stderr


def test_what_fails_does_not_end_what_comes_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told; the half hour goes on."""
    done: list[str] = []

    def failing() -> None:
        raise RuntimeError("no kernel")

    assert [False, True] == [cuda.went("one", failing), cuda.went("two", lambda: done.append("two"))]
    assert ["two"] == done
    assert "no kernel" in capsys.readouterr().err
