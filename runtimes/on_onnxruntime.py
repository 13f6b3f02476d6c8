"""ONNX Runtime on the CPU. Images are read and maps are returned where they lie: nothing is copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.onnx_files import IMAGE, onnx_model

__all__ = ["compiled", "opened", "session_of"]

Run = Callable[[Tensor], Sequence[Tensor]]

ERRORS_ONLY = 3


def compiled(model: Exportable, *, threads: int | None) -> Run:
    """Return images (N, C, H, W) → outputs, in the order of the model's signature.

    Raises:
        OptionError: the model is not in float32 on the CPU.
        ExportError: it cannot be exported.
    """
    model.check_on_cpu("onnxruntime")
    return _runner(session_of(onnx_model(model).SerializeToString(), threads))


def opened(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return what an ONNX file says of its model, and images → outputs."""
    session = session_of(str(path), threads)
    return dict(session.get_modelmeta().custom_metadata_map), _runner(session)


def session_of(model: bytes | str, threads: int | None) -> onnxruntime.InferenceSession:
    """Return a session for the bytes or the path of an ONNX model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = ERRORS_ONLY
    # Threads that go on spinning after a call would slow down whatever the program does next by a factor.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _runner(session: onnxruntime.InferenceSession) -> Run:
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> list[Tensor]:
        # Arrays that a session returns own their memory, and tensors share it with them.
        return [torch.from_numpy(array) for array in session.run(names, {IMAGE: images.numpy()})]

    return run
