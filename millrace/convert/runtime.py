"""ONNX Runtime, as everything here opens it: without telemetry, and where it was told to."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded; a private service is silent
# Read when a session is made. Over keys and values in 8 bits its other attention decodes faster, the more so
# the longer the context, and prefills as fast.
os.environ["ORT_GQA_DISABLE_FLASH_ATTENTION"] = "1"
# Read there, too. Without it CUDA writes all weights of 4 bits in 16 and reads them again, in each step of
# more than 16 rows; those of 8 bits in each of more than 4.
os.environ.setdefault("ORT_FPA_INTB_GEMM", "1")

import onnxruntime as ort  # type: ignore[import-untyped]
from onnxruntime.capi import onnxruntime_pybind11_state as kinds  # type: ignore[import-untyped]

from millrace.cuda import INSTALL, PROVIDER

__all__ = ["NoCuda", "Unreadable", "ort", "ready", "said", "session"]

SPOILT = (kinds.Fail, kinds.InvalidArgument, kinds.InvalidGraph, kinds.InvalidProtobuf, kinds.NoSuchFile)
"""What ONNX Runtime says of a file that is not there or is cut off. Want of memory is not one of
them: that may pass."""

DENIED = f"SystemError : {errno.EACCES}"
"""What it says of weights that it may not read, as an error of any kind: it takes the number for one."""


POINT = re.compile(r"CUDA (?:failure|error) [^;\n]*[^;\s]|Failed to allocate memory.*")
"""In what it says of a device; around it stand its own files, functions and lines."""


class Unreadable(ValueError):
    """A graph, or the weights that belong to it, cannot be read from where they lie."""


class NoCuda(ValueError):
    """CUDA was asked for, and ONNX Runtime has not got it; it would have gone on without."""


def session(
    model: bytes | str,
    options: ort.SessionOptions | None = None,
    folder: Path | None = None,
    gpu: int | None = None,
    captures: bool = False,
) -> ort.InferenceSession:
    """`folder`: where the files of weights lie that a model given as bytes names. `gpu`: the number of the
    CUDA device to run on; NoCuda where that cannot be. `captures`: runs there are recorded, each under its
    `gpu_graph_id`, and replayed from then on. Raises Unreadable where a file is spoilt."""
    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if gpu is not None:
        return _on_gpu(model, options, gpu, captures)
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        denied = DENIED in str(error)
        if isinstance(model, bytes) or not (denied or isinstance(error, SPOILT)):
            raise
        why = "the weights beside it may not be read" if denied else " ".join(str(error).split())
        raise Unreadable(f"{model}: {why}") from None


def ready() -> None:
    """For anything on a GPU. Memory there is taken as asked for, not as the next power of two, outside of
    sessions too: there ONNX Runtime has a call for it, and warns of the call."""
    if PROVIDER not in ort.get_available_providers():
        raise NoCuda(f"onnxruntime {ort.__version__} has no {PROVIDER}: {INSTALL}")
    ort.preload_dlls()  # of the packages beside it, where they are; else the system's are found
    if set_strategy := getattr(kinds, "set_arena_extend_strategy", None):
        with _errors_alone():
            set_strategy(kinds.ArenaExtendStrategy.kSameAsRequested)


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
    """On standard error, from where nobody is told whose they are."""
    ort.set_default_logger_severity(3)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


def said(error: Exception) -> str:
    """What ONNX Runtime has to say of a device, as far as it is for others."""
    found = POINT.search(str(error))
    return found.group() if found else str(error)


def _on_gpu(
    model: bytes | str, options: ort.SessionOptions, gpu: int, captures: bool
) -> ort.InferenceSession:
    ready()
    on = {
        "device_id": str(gpu),
        "use_tf32": "0",
        # Memory grows by what is asked for: doubling it would take what keys and values are to have.
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1" if captures else "0",
    }
    providers = [(PROVIDER, on), "CPUExecutionProvider"]
    try:
        # It warns at each that CUDA is no plugin. What fails is not tried again without CUDA.
        with _errors_alone():
            made = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime has its own kinds
        raise NoCuda(f"no session on cuda:{gpu}: {said(error)}") from None
    if PROVIDER not in made.get_providers():
        raise NoCuda(
            f"ONNX Runtime cannot use CUDA on cuda:{gpu}, the lines before this one say why. It needs a "
            f"driver for CUDA {getattr(ort, 'cuda_version', '') or '13'}, and its libraries: {INSTALL}"
        )
    return made
