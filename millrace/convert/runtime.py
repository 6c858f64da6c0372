"""ONNX Runtime, as everything here opens it: without telemetry, on the CPU."""

import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded; a private service is silent

import onnxruntime as ort  # type: ignore[import-untyped]

__all__ = ["ort", "session"]


def session(
    model: bytes | str, options: ort.SessionOptions | None = None, folder: Path | None = None
) -> ort.InferenceSession:
    """`folder`: where the files of weights lie that a model given as bytes names."""
    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
