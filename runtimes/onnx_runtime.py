"""ONNX Runtime on the CPU, without PyTorch. Inputs are read in place; outputs are new arrays."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from featuretap.runtimes.signature import Opened
from featuretap.specs.graph import IMAGE

ERRORS_ONLY = 3

# Version 1.32 collects telemetry in the user's cache folder. Loading a model must not enable it.
onnxruntime.disable_telemetry_events()


def open_session(model: bytes | Path, *, threads: int) -> Opened:
    """Open an ONNX model, given as bytes or as a path, with a number of threads."""
    session = onnx_session(model if isinstance(model, bytes) else str(model), threads)
    names = [output.name for output in session.get_outputs()]
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    return Opened(metadata, lambda images: session.run(names, {IMAGE: images}))


def onnx_session(model: bytes | str, threads: int) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session for a serialized model or a path, with a number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    # Threads that keep spinning after a call slow down the rest of the program.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
