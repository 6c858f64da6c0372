"""What a machine has for CUDA, what is said of what is missing, and that nothing runs elsewhere instead."""

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace import cli, cuda, settings
from millrace.convert.runtime import NoCuda, ort, said, session
from millrace.subjects import Role
from millrace.up.launch import Launch
from millrace.up.seat import Seat
from services.engine.model.device import Gpu

HAS = {"onnxruntime-gpu": "1.31.1"}
TWO = [cuda.Device("A", 80 << 30, 79 << 30), cuda.Device("B")]


def has(devices: list[cuda.Device], driver: str = "580.65.06") -> cuda.Found:
    return cuda.Found(HAS, driver, devices, cuda.problems(HAS, True, driver, devices, devices))


def test_a_device_is_named_by_its_number() -> None:
    """Plain cuda is the first."""
    assert [None, 0, 0, 3] == [cuda.number(name) for name in ("cpu", "cuda", "cuda:0", "cuda:3")]


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", ""])
def test_another_name_is_a_wrong_setting(name: str) -> None:
    """The message names the flag."""
    with pytest.raises(settings.SettingError, match="--device"):
        settings.load(settings.Engine, {"device": name}, {})


def test_devices_are_those_that_the_driver_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By nvidia-smi, with their memory."""
    program = tmp_path / "nvidia-smi"
    lines = ("NVIDIA H100, 80 HBM3, 81559, 81079, 9.0, 580.65.06", "NVIDIA A10, 23028, 10, [N/A], 580.65.06")
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = cuda.found(str(tmp_path))

    assert "580.65.06" == found.driver
    assert [
        cuda.Device("NVIDIA H100, 80 HBM3", 81559 << 20, 81079 << 20, 9.0),
        cuda.Device("NVIDIA A10", 23028 << 20, 10 << 20),
    ] == found.devices


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        (None, "AB"),
        ("1", "B"),
        ("1,0", "BA"),
        ("0,7,1", "A"),
        ("", ""),
        ("-1", ""),
        ("GPU-5a", ["GPU-5a"]),
    ],
)
def test_the_drivers_own_files_do_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shown: str | None, names: Any
) -> None:
    """And CUDA_VISIBLE_DEVICES hides some, and puts them in another order."""
    folder = tmp_path / "proc/driver/nvidia"
    for bus, model in (("0000:01:00.0", "A"), ("0000:41:00.0", "B")):
        (folder / "gpus" / bus).mkdir(parents=True)
        (folder / "gpus" / bus / "information").write_text(f"Model: \t {model}\nIRQ: 7\n")
    (folder / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sat\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = cuda.found(str(tmp_path), {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown})

    assert list(names) == [each.name for each in found.devices]
    assert "575.57.08" == found.driver
    assert any("575.57.08" in each.what and "580" in each.mend for each in found.problems)
    assert (shown in ("", "-1")) == any("CUDA_VISIBLE_DEVICES" in each.what for each in found.problems)


@pytest.mark.parametrize(
    ("packages", "provider", "driver", "devices", "what"),
    [
        ({"onnxruntime": "1.31.1"}, False, "580.1", TWO, "onnxruntime 1.31.1 has no CUDAExecutionProvider"),
        ({}, False, "580.1", TWO, "what is installed has no"),
        ({"onnxruntime": "1", "onnxruntime-gpu": "1"}, True, "580.1", TWO, "both installed"),
        (HAS, True, "", [], "no NVIDIA driver"),
        (HAS, True, "580.1", [], "has no device"),
        (HAS, True, "570.1", TWO, "570.1"),
    ],
)
def test_what_is_missing_is_said_with_its_mend(
    packages: dict[str, str], provider: bool, driver: str, devices: list[cuda.Device], what: str
) -> None:
    """One thing is wrong, one thing is said."""
    (problem,) = cuda.problems(packages, provider, driver, devices, devices)

    assert what in problem.what
    assert problem.mend


@pytest.mark.parametrize("beside", [True, False])
def test_only_packages_whose_files_are_imported_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beside: bool
) -> None:
    """Over each other's files they are a problem; one that lies elsewhere on the path is never loaded."""
    (tmp_path / "onnxruntime_gpu-9.9.dist-info").mkdir()
    (tmp_path / "onnxruntime_gpu-9.9.dist-info/METADATA").write_text("Name: onnxruntime-gpu\nVersion: 9.9\n")
    if beside:
        (tmp_path / "onnxruntime").symlink_to(Path(ort.__file__).parent)
    monkeypatch.syspath_prepend(tmp_path)
    found = cuda.found()

    assert beside == ("9.9" in found.packages.values())
    assert beside == any("both installed" in each.what for each in found.problems)


def test_a_device_that_is_not_there_is_refused() -> None:
    """With those that are."""
    assert ["", "", ""] == [cuda.refusal(name, has(TWO)) for name in ("cpu", "cuda", "cuda:1")]
    assert "cuda:1 (B)" in cuda.refusal("cuda:2", has(TWO))
    assert "" == cuda.refusal("cpu", has([], ""))
    assert "NVIDIA driver" in cuda.refusal("cuda", has([], ""))


@pytest.mark.parametrize(
    ("whole", "point"),
    [
        (
            "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=a ; file=/b.cc ; expr=c();",
            "CUDA failure 719: unspecified launch failure",
        ),
        (
            "/c/d.cc:360 void* e(size_t, f*) Failed to allocate memory for requested buffer of size 9\n",
            "Failed to allocate memory for requested buffer of size 9",
        ),
        (
            "Non-zero status code returned. Status Message: CUDA error cudaErrorLaunchFailure:unspecified\n",
            "CUDA error cudaErrorLaunchFailure:unspecified",
        ),
        ("something else", "something else"),
    ],
)
def test_what_a_device_fails_of_is_said_without_where(whole: str, point: str) -> None:
    """ONNX Runtime says in which of its files and functions as well."""
    assert point == said(RuntimeError(whole))


def test_memory_that_is_not_to_be_had_is_said_to_be() -> None:
    """How much, and where; an engine ends of it with this, and not with a trace."""
    with pytest.raises(NoCuda, match=r"^cpu:0 has no .* left: "):
        Gpu(0, "cpu").value(np.int64, 1 << 59)


@pytest.mark.skipif(not cuda.found().problems, reason="this machine has a GPU")
def test_nothing_runs_on_the_processor_instead(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """ONNX Runtime would; a session, `up`, an engine and a trial in a process of its own say why not."""
    with pytest.raises(NoCuda):
        session(b"", gpu=0)
    assert "CUDA" in cuda.tried()
    nobody = ["--nats", "nats://127.0.0.1:1"]
    for command in (["up", "--state-dir", str(tmp_path), "--port", "0"], ["engine", *nobody]):
        said = cli.main([*command, "--device", "cuda"])

        assert 2 == said
        assert "--device cuda: " in capsys.readouterr().err


async def test_engines_are_spread_over_the_devices() -> None:
    """The device that fewest have is next; one that is left is taken again."""
    seats = [Seat(Role.ENGINE, n, None, 0) for n in range(1, 7)]
    launch = Launch.__new__(Launch)
    launch._gpus = 4
    given = [launch.engines(seat, seats) for seat in seats]

    assert [f"cuda:{n}" for n in (0, 1, 2, 3, 0, 1)] == [each["MILLRACE_DEVICE"] for each in given]
    assert {"2"} == {each["MILLRACE_ENGINES"] for each in given}
    assert "cuda:2" == launch.engines(seats[2], seats)["MILLRACE_DEVICE"]

    launch._gpus = 0
    assert {"MILLRACE_ENGINES": "6"} == launch.engines(seats[0], seats)
