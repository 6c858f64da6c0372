"""Each check says what is wrong and what mends it; one bad finding makes the status."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millrace import cuda, models, settings, store
from millrace.capacity import Memory, Needs, fit
from millrace.command import doctor
from millrace.command.doctor import Finding

HERE = Path("/somewhere")
CPU = ("CPUExecutionProvider",)
FITTING = fit(Needs(1 << 30, 1 << 30, 1000, 1000, 4096), Memory(16 << 30, 8 << 30))


def on_gpus(*problems: cuda.Problem, device: str = "cuda", failed: str = "") -> Finding:
    has = cuda.Found({cuda.PACKAGE: "1.31.1"}, "580.65", [cuda.Device("A")], list(problems))
    found = doctor.gpus(device, has, lambda at: failed)
    assert found
    return found


WRONG = [
    (doctor.python((3, 10, 2)), "bad", "3.11"),
    (doctor.onnxruntime("", (), silent=True), "bad", "make setup"),
    (doctor.onnxruntime("1.31.1", ("AzureExecutionProvider",), silent=True), "bad", "onnxruntime"),
    (doctor.onnxruntime("1.31.1", CPU, silent=False), "warn", "ORT_DISABLE_TELEMETRY"),
    (on_gpus(cuda.Problem("no driver", "load one"), cuda.Problem("two", "uninstall")), "bad", "one; un"),
    (on_gpus(cuda.Problem("no driver", "load one"), device="cpu"), "warn", "load one"),
    (on_gpus(device="cuda:1"), "bad", "name one"),
    (on_gpus(failed="no session on cuda:0"), "bad", "onnxruntime-gpu"),
    (doctor.nats(None, ""), "bad", "make setup"),
    (doctor.nats(HERE, ""), "bad", "again"),
    (doctor.jetstream(500, 100, 399), "warn", "room"),
    (doctor.processor({"sse2"}, "x86_64", 2), "warn", "machine"),
    (doctor.memory(Memory(8, 8), "it never fits"), "bad", "smaller"),
    (doctor.memory(Memory(16 << 30, 1 << 20), FITTING), "warn", "memory is short"),
    (doctor.disk("state", HERE, 1 << 40, writable=False), "bad", str(HERE)),
    (doctor.disk("models", HERE, 1 << 40, writable=False, needed=False), "warn", str(HERE)),
    (doctor.disk("cache", HERE, 1 << 20, writable=True), "warn", "room"),
    (doctor.port("127.0.0.1", 80, "cannot listen", ours=False), "bad", "--port"),
    (doctor.port("::1", 80, "--host ::1: nobody", ours=False), "bad", "--host"),
    (doctor.clock(0.0, 1e9, kept=True), "warn", "set it"),
    (doctor.open_files(1024, 4096), "warn", "ulimit"),
    (doctor.threads(22, 1, 2), "warn", "pids.max"),
    (doctor.model("demo", ["model.onnx: missing", "x: missing"], ""), "bad", "millrace model ls"),
    (doctor.refused("draft", "its tokens are others"), "bad", "--draft"),
]

WELL = [
    doctor.python((3, 11, 0)),
    doctor.onnxruntime("1.31.1", CPU, silent=True),
    on_gpus(),
    doctor.nats(HERE, "v2.15.1"),
    doctor.jetstream(500, 100, 400),
    doctor.processor({"avx2", "avx512_vnni"}, "x86_64", 2),
    doctor.processor(set(), "aarch64", 2),
    doctor.memory(Memory(16 << 30, 8 << 30), FITTING),
    doctor.disk("state", HERE, 1 << 40, writable=True),
    doctor.port("127.0.0.1", 80, "cannot listen", ours=True),
    doctor.clock(2e9, 1e9, kept=False),
    doctor.open_files(1 << 20, 4096),
    doctor.threads(32, 1, 2),
    doctor.threads(None, 64, 64),
    doctor.model("demo", [], "every file is as it was made"),
]


@pytest.mark.parametrize(("found", "state", "mend"), WRONG)
def test_what_is_wrong_has_its_mend(found: Finding, state: str, mend: str) -> None:
    assert found.state == state
    assert mend in found.mend
    assert mend in doctor.lines(found, colour=False)[1]


@pytest.mark.parametrize("found", WELL)
def test_what_is_well_needs_none(found: Finding) -> None:
    assert (found.state, found.mend) == ("ok", "")
    assert len(doctor.lines(found, colour=False)) == 1


def test_the_best_kernels_are_named() -> None:
    """A processor that has VNNI is not told that it has AVX2."""
    assert "AMX" in doctor.processor({"avx2", "avx512_vnni", "amx_int8"}, "x86_64", 2).said
    assert "without VNNI" in doctor.processor({"avx2"}, "x86_64", 2).said


def test_gpus_are_no_matter_to_who_asks_for_none() -> None:
    """With the package for processors, whatever else is missing, nothing is tried."""
    has = cuda.Found({"onnxruntime": "1.31.1"}, "", [], [cuda.Problem("no driver", "load one")])

    assert doctor.gpus("cpu", has, lambda at: pytest.fail("a session was tried")) is None
    asked = doctor.gpus("cuda", has, lambda at: pytest.fail("a session was tried"))
    assert asked and (asked.state, asked.said) == ("bad", "no driver")


def examined(tmp_path: Path, port: int, model: str, **engine: Any) -> tuple[int, dict[str, Finding]]:
    up = settings.Up(port=port, state_dir=str(tmp_path), models=str(tmp_path))
    given = settings.Engine(model=model, models=str(tmp_path), **engine)
    said: list[str] = []
    status = doctor.run(up, settings.Gateway(), given, as_json=True, say=said.append)
    return status, {each["name"]: msgspec.convert(each, Finding) for each in json.loads(said[0])}


def test_this_machine_can_run_it(tmp_path: Path) -> None:
    """The tests run here, so nothing keeps it from working; ONNX Runtime is silent, as we load it."""
    status, found = examined(tmp_path, 0, "sim")

    assert status == 0, found
    assert "telemetry off" in found["onnxruntime"].said
    assert found["nats-server"].said.startswith("v")


def test_a_taken_port_and_a_missing_model_are_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, found = examined(tmp_path, taken.getsockname()[1], "nope")

    assert status == 1
    assert (found["port"].state, found["model"].state) == ("bad", "bad")
    assert "nope" in found["model"].said


def test_what_the_engine_is_asked_for_is_looked_at(tmp_path: Path) -> None:
    """A draft's files and words as the model's own, fast mode, and whether so many slots fit."""
    shipped = models.find("demo").folder
    with store.adding(tmp_path, "small", "here") as made:
        shutil.copytree(shipped, made)
    _, well = examined(tmp_path, 0, "demo", draft="small", fast=True, slots=4)
    (tmp_path / "small" / "calibration.txt").write_text("another")
    _, changed = examined(tmp_path, 0, "demo", draft="small", fast=True)
    status, wrong = examined(tmp_path, 0, "demo", draft="sim", slots=10**6)
    _, nothing = examined(tmp_path, 0, "sim", fast=True)

    assert ["ok"] * 4 == [well[name].state for name in ("model", "draft", "fast", "memory")]
    assert well["draft"].said.startswith("small: every file is as it was made")
    assert "4 slots" in well["memory"].said
    assert changed["draft"].state == "bad" and changed["draft"].said.startswith("calibration.txt")
    assert (1, "bad") == (status, wrong["draft"].state) and "sim is simulated" in wrong["draft"].said
    assert nothing["fast"].state == "bad" and "sim is simulated" in nothing["fast"].said


def test_a_file_that_was_changed_is_found(tmp_path: Path) -> None:
    """A model of the store is held against its digests."""
    with store.adding(tmp_path, "mine", "here") as made:
        made.mkdir()
        (made / "config.json").write_text('{"model_type": "millrace_sim"}')
        (made / "words.txt").write_text("as it was made")
    _, well = examined(tmp_path, 0, "mine")
    (tmp_path / "mine" / "words.txt").write_text("as it was MADE")
    _, found = examined(tmp_path, 0, "mine")

    assert well["model"].said.startswith("mine: every file is as it was made")
    assert found["model"].state == "bad"
    assert found["model"].said.startswith("words.txt")
