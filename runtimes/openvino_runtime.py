"""OpenVINO files, and OpenVINO on the CPU. It reads images in place, and copies maps once."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor

from featuretap.runtimes.exportable import IMAGE, Exportable, Run

SECTION = "featuretap"
"""Section of a file's runtime information that holds our metadata, whose keys begin with it and a dot."""

ONNX_SECTION = "framework"
"""Section into which OpenVINO puts the metadata of ONNX files, under their full keys."""


def compile_openvino(model: Exportable, *, threads: int | None) -> Run:
    """Return what runs a model in OpenVINO."""
    return _runner(_convert(model), threads)


def open_openvino(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return the metadata of an .xml file (with its .bin beside it) or an ONNX file, and what runs it."""
    model = openvino.Core().read_model(path)
    return {**_read_section(model, ONNX_SECTION, ""), **_read_section(model, SECTION, f"{SECTION}.")}, _runner(
        model, threads
    )


def write_openvino(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an .xml file and the .bin of its weights beside it, with the metadata in its runtime information."""
    converted = _convert(model)
    for key, value in metadata.items():
        converted.set_rt_info(value, [SECTION, key.removeprefix(f"{SECTION}.")])
    # Half the size is not worth the loss of precision by default.
    openvino.save_model(converted, path, compress_to_fp16=False)


def _convert(model: Exportable) -> openvino.Model:
    """Return a model as OpenVINO's, with input "image" and outputs by name."""
    model.check_on_cpu("openvino")
    program = model.program()
    with model.export_errors():
        converted = openvino.convert_model(program)
    converted.inputs[0].get_tensor().set_names({IMAGE})
    for output, name in zip(converted.outputs, model.signature.outputs, strict=True):
        output.get_tensor().set_names({name})
    return converted


def _read_section(model: openvino.Model, section: str, prefix: str) -> dict[str, str]:
    info = model.get_rt_info([section]).value if model.has_rt_info([section]) else {}
    return {f"{prefix}{name}": str(getattr(value, "value", value)) for name, value in info.items()}


def _runner(model: openvino.Model, threads: int | None) -> Run:
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        # Without it, processors with bfloat16 units compute in bfloat16.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    network = openvino.Core().compile_model(model, "CPU", options)
    requests = threading.local()

    def run(images: Tensor) -> list[Tensor]:
        # A request computes one call at a time.
        if not hasattr(requests, "own"):
            requests.own = network.create_infer_request()
        request = requests.own
        # The tensor does not own the array's memory, so that `array` has to live until the call is over.
        array = images.contiguous().numpy()
        request.set_input_tensor(openvino.Tensor(array, shared_memory=True))
        request.infer()
        del array
        # The request overwrites its outputs at the next call.
        return [torch.from_numpy(output.data.copy()) for output in request.output_tensors]

    return run
