"""Files of other libraries' formats: ONNX and OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.onnx_files import onnx_model

__all__ = ["write_onnx", "write_openvino"]


def write_onnx(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file, with the metadata in its `metadata_props`.

    Raises:
        OptionError: the model is not in float32 on the CPU, where ONNX Runtime reads it again.
        ExportError: it cannot be exported.
    """
    model.check_on_cpu("onnxruntime")
    path.write_bytes(onnx_model(model, metadata).SerializeToString())


def write_openvino(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an .xml file and the .bin of its weights beside it, with the metadata in its runtime information.

    Raises:
        OptionError: the model is not in float32 on the CPU.
        ExportError: it cannot be converted.
    """
    import openvino

    from featuretap.runtimes.on_openvino import SECTION, openvino_model

    model.check_on_cpu("openvino")
    converted = openvino_model(model)
    for name, value in metadata.items():
        converted.set_rt_info(value, [SECTION, name.removeprefix(f"{SECTION}.")])
    # Half the size is not worth what it costs in precision, unasked.
    openvino.save_model(converted, path, compress_to_fp16=False)
