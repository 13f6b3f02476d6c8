"""ONNX files, and ONNX Runtime on the CPU. It reads images and returns maps in place, without a copy."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from featuretap.runtimes.exportable import IMAGE, Exportable, Run, quiet_exporters

ERRORS_ONLY = 3


def compile_onnx(model: Exportable, *, threads: int | None) -> Run:
    """Return what runs a model in ONNX Runtime."""
    model.check_on_cpu("onnxruntime")
    return _runner(onnx_session(onnx_model(model, {}).SerializeToString(), threads))


def open_onnx(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return the metadata of an ONNX file, and what runs it."""
    session = onnx_session(str(path), threads)
    return dict(session.get_modelmeta().custom_metadata_map), _runner(session)


def write_onnx(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file, with the metadata in its `metadata_props`."""
    model.check_on_cpu("onnxruntime")
    path.write_bytes(onnx_model(model, metadata).SerializeToString())


def onnx_model(model: Exportable, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Return a model as ONNX: input "image", outputs by the names of the taps."""
    program = model.program()
    with model.export_errors(), quiet_exporters():
        exported = torch.onnx.export(
            program, input_names=[IMAGE], output_names=list(model.signature.outputs), dynamo=True, verbose=False
        )
    assert exported is not None
    proto: onnx.ModelProto = exported.model_proto
    # The exporter notes for each node the path of its source code on this machine.
    for noted in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph, *proto.functions):
        del noted.metadata_props[:]
    for key, value in sorted(metadata.items()):
        proto.metadata_props.add(key=key, value=value)
    return proto


def onnx_session(model: bytes | str, threads: int | None) -> onnxruntime.InferenceSession:
    """Return a session for the bytes or the path of an ONNX model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = ERRORS_ONLY
    # Threads that spin on after a call slow down whatever the program does next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _runner(session: onnxruntime.InferenceSession) -> Run:
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> list[Tensor]:
        # Arrays that a session returns own their memory, and tensors share it with them.
        return [torch.from_numpy(array) for array in session.run(names, {IMAGE: images.numpy()})]

    return run
