"""What this machine has for `--device cuda`, what is missing, and what mends it.

Two Python packages have the same modules: `onnxruntime`, which knows processors alone, and `onnxruntime-gpu`.
ONNX Runtime falls back to the processor without an error where CUDA cannot be had; here that is one.

`found()` looks at packages, driver and devices, and is quick. `tried()` opens a session on a device, in a
process of its own (`gpu_trial.py`), since libraries that do not fit may end it: only that is certain.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from millrace.settings import SettingError

PROVIDER = "CUDAExecutionProvider"
PACKAGE = "onnxruntime-gpu"
DRIVER = 580
"""The first that runs CUDA 13, which onnxruntime-gpu is built with."""

INSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
QUERY = "name,memory.total,memory.free,compute_cap,driver_version"

BFLOAT16 = 8.0
"""The compute capability from which a device computes in bfloat16."""

TRIAL_S = 60.0


@dataclass(frozen=True)
class Problem:
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}"


@dataclass(frozen=True)
class Device:
    name: str
    total: int = 0  # bytes; 0 is unknown
    free: int = 0
    capability: float = 0.0  # 0 is unknown


@dataclass(frozen=True)
class Found:
    packages: dict[str, str]  # the versions of those whose modules would be imported
    driver: str  # its version; empty: none
    devices: list[Device]  # as cuda:0, cuda:1 ... name them
    problems: list[Problem]  # what keeps `--device cuda` from working


def number(device: str) -> int | None:
    """Of a CUDA device; plain "cuda" is the first. None: the processor."""
    kind, _, at = device.partition(":")
    return int(at or 0) if kind == "cuda" else None


def found(root: str = "/", env: Mapping[str, str] = os.environ) -> Found:
    """`root`: where /proc is, if a container has the machine's elsewhere."""
    places = _places()
    packages = {}
    for name in ("onnxruntime", PACKAGE):
        try:
            made = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Path(str(made.locate_file("onnxruntime"))).resolve() in places:  # not behind another on the path
            packages[name] = made.version
    provider = _has_provider(places)
    devices, driver = _asked(env) or _listed(Path(root))
    seen = _visible(devices, env.get("CUDA_VISIBLE_DEVICES"))
    return Found(packages, driver, seen, problems(packages, provider, driver, devices, seen))


def problems(
    packages: Mapping[str, str], provider: bool, driver: str, devices: list[Device], seen: list[Device]
) -> list[Problem]:
    made = []
    if len(packages) == 2:
        made.append(
            Problem("onnxruntime and onnxruntime-gpu are both installed, over each other's files", INSTALL)
        )
    elif not provider:
        what = f"onnxruntime {packages['onnxruntime']}" if "onnxruntime" in packages else "what is installed"
        made.append(Problem(f"{what} has no {PROVIDER}", INSTALL))
    if not driver:
        made.append(
            Problem(
                "no NVIDIA driver is loaded",
                f"install one of version {DRIVER} or newer (in a container: run it with the NVIDIA runtime)",
            )
        )
    else:
        major = driver.partition(".")[0]
        if major.isdigit() and int(major) < DRIVER:
            mend = f"CUDA 13 needs {DRIVER} or newer: update it"
            made.append(Problem(f"the NVIDIA driver is of version {driver}", mend))
    if driver and not devices:
        made.append(Problem("the NVIDIA driver has no device", "look at `nvidia-smi -L`"))
    elif devices and not seen:
        made.append(Problem("CUDA_VISIBLE_DEVICES hides every device", "unset it, or name one that is there"))
    return made


def refusal(device: str, has: Found) -> str:
    """Why an engine cannot run there; empty if nothing speaks against it."""
    wanted = number(device)
    if wanted is None:
        return ""
    if has.problems:
        return f"--device {device}: " + "; ".join(map(str, has.problems))
    if wanted >= len(has.devices):
        there = ", ".join(f"cuda:{i} ({one.name})" for i, one in enumerate(has.devices))
        return f"--device {device}: there is no such device, there is {there}"
    return ""


def available(device: str, root: str = "/") -> list[Device]:
    """The devices, if the one that is named is among them; none where it is the processor. A SettingError
    says what is missing."""
    if number(device) is None:
        return []
    has = found(root)
    if refused := refusal(device, has):
        raise SettingError(refused)
    return has.devices


def least(devices: int, taken: Iterable[int]) -> int:
    """The device that fewest engines have; of equals the first."""
    count = Counter(taken)
    return min(range(devices), key=lambda at: (count[at], at))


def tried(at: int = 0) -> str:
    """A session on this device, in a process of its own: empty, or what ONNX Runtime said."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "millrace.gpu_trial", str(at)],
            capture_output=True,
            text=True,
            timeout=TRIAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no session within {TRIAL_S:g} s"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return "" if done.returncode == 0 else lines[0] if lines else f"it ended with status {done.returncode}"


def _places() -> list[Path]:
    """Where the modules are that an import finds."""
    spec = util.find_spec("onnxruntime")
    return [Path(place).resolve() for place in spec.submodule_search_locations or ()] if spec else []


def _has_provider(places: list[Path]) -> bool:
    names = ("libonnxruntime_providers_cuda.so", "onnxruntime_providers_cuda.dll")
    return any((place / "capi" / name).is_file() for place in places for name in names)


def _asked(env: Mapping[str, str]) -> tuple[list[Device], str] | None:
    """By nvidia-smi, which comes with the driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"],
            env=dict(env),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    rows = [[part.strip() for part in line.rsplit(",", 4)] for line in done.stdout.splitlines() if line]
    rows = [row for row in rows if len(row) == 5]
    devices = [Device(name, _mega(total), _mega(free), _capability(of)) for name, total, free, of, _ in rows]
    return devices, rows[0][-1] if rows else ""


def _mega(text: str) -> int:
    return int(text) << 20 if text.isdigit() else 0


def _capability(text: str) -> float:
    return float(text) if re.fullmatch(r"\d+\.\d+", text) else 0.0


def _listed(root: Path) -> tuple[list[Device], str]:
    """By the driver's own files, in the order of the bus."""
    folder = root / "proc/driver/nvidia"
    try:
        known = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", (folder / "version").read_text())
        files = sorted((folder / "gpus").glob("*/information"))
        texts = [file.read_text() for file in files]
    except OSError:
        return [], ""
    names = [re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts]
    return [Device(name.group(1) if name else "a GPU") for name in names], known.group(1) if known else "?"


def _visible(devices: list[Device], shown: str | None) -> list[Device]:
    """What CUDA_VISIBLE_DEVICES leaves: it ends at the first that is not there. Names of devices are taken
    at their word."""
    if shown is None:
        return devices
    seen = []
    for part in (part.strip() for part in shown.split(",")):
        if part.isdigit() and int(part) < len(devices):
            seen.append(devices[int(part)])
        elif part.startswith(("GPU-", "MIG-")):
            seen.append(Device(part))
        else:
            break
    return seen
