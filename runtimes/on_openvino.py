"""OpenVINO on the CPU. Images are read where they lie; maps are copied out of the runtime's memory once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor

from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.onnx_files import IMAGE
from featuretap.support.errors import ExportError

__all__ = ["compiled", "opened", "openvino_model"]

Run = Callable[[Tensor], Sequence[Tensor]]

SECTION = "featuretap"
"""The part of a file's runtime information that holds our metadata, whose names begin with it and a dot."""

FROM_ONNX = "framework"
"""The part that OpenVINO puts the metadata of ONNX files into, under their whole names."""


def compiled(model: Exportable, *, threads: int | None) -> Run:
    """Return images (N, C, H, W) → outputs, in the order of the model's signature.

    Raises:
        OptionError: the model is not in float32 on the CPU.
        ExportError: it cannot be converted.
    """
    model.check_on_cpu("openvino")
    return _runner(openvino_model(model), threads)


def opened(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return what an .xml file (with its .bin beside it) or an ONNX file says of its model, and images → outputs."""
    model = openvino.Core().read_model(path)
    return {**_section(model, FROM_ONNX, ""), **_section(model, SECTION, f"{SECTION}.")}, _runner(model, threads)


def openvino_model(model: Exportable) -> openvino.Model:
    """Return a model as OpenVINO's, with input "image" and outputs by name.

    Raises:
        ExportError: it cannot be converted.
    """
    program = model.program()
    try:
        converted = openvino.convert_model(program)
    except Exception as error:
        raise ExportError(model.refusal(error)) from error
    converted.inputs[0].get_tensor().set_names({IMAGE})
    for output, name in zip(converted.outputs, model.signature.outputs, strict=True):
        output.get_tensor().set_names({name})
    return converted


def _section(model: openvino.Model, section: str, prefix: str) -> dict[str, str]:
    info = model.get_rt_info([section]).value if model.has_rt_info([section]) else {}
    return {f"{prefix}{name}": str(getattr(value, "value", value)) for name, value in info.items()}


def _runner(model: openvino.Model, threads: int | None) -> Run:
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        # Processors with units for bfloat16 would be taken as leave to use them.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    network = openvino.Core().compile_model(model, "CPU", options)
    requests = threading.local()

    def run(images: Tensor) -> list[Tensor]:
        # A request computes one call at a time.
        if not hasattr(requests, "own"):
            requests.own = network.create_infer_request()
        request = requests.own
        # It holds the array's memory without owning it, which has to live until the call is over.
        given = images.contiguous().numpy()
        request.set_input_tensor(openvino.Tensor(given, shared_memory=True))
        request.infer()
        del given
        # The request writes over its outputs at the next call.
        return [torch.from_numpy(output.data.copy()) for output in request.output_tensors]

    return run
