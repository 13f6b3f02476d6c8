"""OpenVINO on the CPU, without PyTorch. Inputs are read in place; outputs are copied once."""

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
"""Section of the file's runtime information with featuretap's metadata. Metadata keys start with it and a dot."""

ONNX_SECTION = "framework"
"""Section in which OpenVINO stores the metadata of ONNX files, with unchanged keys."""

HINTS = {FLOAT32: "f32", BF16: "bf16"}
"""Precision → OpenVINO's inference precision hint."""


CORE = openvino.Core()
"""The only core of the process. While a core exists, OpenVINO's CPU plugin replaces the thread's alternate signal
stack, and on closing restores the previous one even if it has been freed. After two cores are closed in the order
they were opened, the next signal ends the process (openvino, src/plugins/intel_cpu: SigAltStackSetup)."""


def open_session(model: bytes | Path, *, threads: int, precision: str = FLOAT32) -> Opened:
    """Open an ONNX model, or the path of an ONNX file or an .xml file with its .bin file. Outputs are always float32.

    Args:
        model: the serialized model or a path.
        threads: number of threads.
        precision: precision of the computation.

    Returns:
        The opened model.
    """
    network = CORE.read_model(model)
    metadata = {**_read_section(network, ONNX_SECTION, ""), **_read_section(network, SECTION, f"{SECTION}.")}
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # By default, OpenVINO computes in bfloat16 on processors that support it.
        "INFERENCE_PRECISION_HINT": HINTS[precision],
    }
    compiled = CORE.compile_model(network, "CPU", options)
    requests = threading.local()

    def run(images: NDArray[Any]) -> list[NDArray[Any]]:
        # An inference request is not thread-safe, so every thread has its own.
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        request = requests.own
        # The tensor shares the array's memory, so `array` must stay alive during the call.
        array = np.ascontiguousarray(images)
        request.set_input_tensor(openvino.Tensor(array, shared_memory=True))
        request.infer()
        del array
        # The next call overwrites the request's outputs.
        return [output.data.copy() for output in request.output_tensors]

    return Opened(metadata, run)


def write_file(graph: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX graph as an .xml file and a .bin file, with the metadata in the runtime information."""
    converted = CORE.read_model(graph.SerializeToString())
    for key, value in metadata.items():
        converted.set_rt_info(value, [SECTION, key.removeprefix(f"{SECTION}.")])
    # By default, OpenVINO stores the weights in float16.
    openvino.save_model(converted, path, compress_to_fp16=False)


def _read_section(model: openvino.Model, section: str, prefix: str) -> dict[str, str]:
    info = model.get_rt_info([section]).value if model.has_rt_info([section]) else {}
    return {f"{prefix}{name}": str(getattr(value, "value", value)) for name, value in info.items()}
