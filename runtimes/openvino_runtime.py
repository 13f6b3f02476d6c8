"""OpenVINO on the CPU, without PyTorch. It reads images in place, and copies outputs once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from numpy.typing import NDArray

from featuretap.runtimes.signature import Opened
from featuretap.specs.runtime import BF16, FLOAT32

if TYPE_CHECKING:
    import onnx

SECTION = "featuretap"
"""Section of a file's runtime information that holds our metadata, whose keys begin with it and a dot."""

ONNX_SECTION = "framework"
"""Section into which OpenVINO puts the metadata of ONNX files, under their full keys."""

HINTS = {FLOAT32: "f32", BF16: "bf16"}
"""Precision → that of OpenVINO's computation."""


CORE = openvino.Core()
"""The only one of the process. OpenVINO's CPU plugin replaces the thread's alternate signal stack while a core lives,
and then restores the previous one, even if that has been freed: after two cores were closed in the order of opening,
the next signal ends the process (openvino, src/plugins/intel_cpu: SigAltStackSetup)."""


def open_session(model: bytes | Path, *, threads: int, precision: str = FLOAT32) -> Opened:
    """Open an ONNX model, or the path of one or of an .xml file with its .bin beside it; outputs stay float32."""
    network = CORE.read_model(model)
    metadata = {**_read_section(network, ONNX_SECTION, ""), **_read_section(network, SECTION, f"{SECTION}.")}
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # Without it, processors with bfloat16 units compute in bfloat16.
        "INFERENCE_PRECISION_HINT": HINTS[precision],
    }
    compiled = CORE.compile_model(network, "CPU", options)
    requests = threading.local()

    def run(images: NDArray[Any]) -> list[NDArray[Any]]:
        # A request computes one call at a time.
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        request = requests.own
        # The tensor does not own the array's memory, so that `array` has to live until the call is over.
        array = np.ascontiguousarray(images)
        request.set_input_tensor(openvino.Tensor(array, shared_memory=True))
        request.infer()
        del array
        # The request overwrites its outputs at the next call.
        return [output.data.copy() for output in request.output_tensors]

    return Opened(metadata, run)


def write_file(graph: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX model as an .xml file and the .bin of its weights, with the metadata in its runtime information."""
    converted = CORE.read_model(graph.SerializeToString())
    for key, value in metadata.items():
        converted.set_rt_info(value, [SECTION, key.removeprefix(f"{SECTION}.")])
    # Half the size is not worth the loss of precision by default.
    openvino.save_model(converted, path, compress_to_fp16=False)


def _read_section(model: openvino.Model, section: str, prefix: str) -> dict[str, str]:
    info = model.get_rt_info([section]).value if model.has_rt_info([section]) else {}
    return {f"{prefix}{name}": str(getattr(value, "value", value)) for name, value in info.items()}
