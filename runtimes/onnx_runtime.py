"""ONNX Runtime on the CPU, without PyTorch. It reads images in place, and returns arrays that own their memory."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from featuretap.runtimes.signature import Opened
from featuretap.specs.graph import IMAGE

ERRORS_ONLY = 3

# Version 1.32 keeps a database of events in the user's cache, to be sent, which nobody asks for who loads a model.
onnxruntime.disable_telemetry_events()


def open_session(model: bytes | Path, *, threads: int) -> Opened:
    """Open an ONNX model, or the path of one."""
    session = onnx_session(model if isinstance(model, bytes) else str(model), threads)
    names = [output.name for output in session.get_outputs()]
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    return Opened(metadata, lambda images: session.run(names, {IMAGE: images}))


def onnx_session(model: bytes | str, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime for a model, or for the path of one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    # Threads that spin on after a call slow down whatever the program does next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
