"""ONNX Runtime, as everything here opens it: without telemetry, on the CPU."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded; a private service is silent

import onnxruntime as ort  # type: ignore[import-untyped]

__all__ = ["ort", "session"]


def session(model: bytes | str, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
