"""ONNX Runtime and OpenVINO for tensors of PyTorch, which share their memory with the arrays of sessions."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from featuretap.runtimes import graphs
from featuretap.runtimes.exportable import Exportable, Run
from featuretap.runtimes.model_graphs import graph_of, open_graph
from featuretap.runtimes.signature import Opened
from featuretap.runtimes.verification import verify_outputs
from featuretap.specs.runtime import FLOAT32
from featuretap.support.import_strings import load


def compile_graph(model: Exportable, *, threads: int | None) -> Run:
    """Return what runs a model's ONNX graph in the runtime of its session."""
    graph = graph_of(model)
    if model.precision != FLOAT32:
        # Rounding would hide a graph that computes something else.
        exact = replace(model, precision=FLOAT32)
        verify_outputs(exact, as_tensors(open_graph(exact, graph, threads)))
    return as_tensors(open_graph(model, graph, threads))


def open_onnx(path: Path, *, threads: int | None) -> tuple[Mapping[str, str], Run]:
    """Return the metadata of an ONNX file, and what runs it in ONNX Runtime."""
    return _open("featuretap.runtimes.onnx_runtime:open_session", path, threads)


def open_openvino(path: Path, *, threads: int | None) -> tuple[Mapping[str, str], Run]:
    """Return the metadata of an .xml file (with its .bin beside it) or an ONNX file, and what runs it in OpenVINO."""
    return _open("featuretap.runtimes.openvino_runtime:open_session", path, threads)


def write_onnx(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file, with the metadata in its `metadata_props`."""
    graphs.write_onnx(graph_of(model), path, metadata)


def write_openvino(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an .xml file and the .bin of its weights beside it, with the metadata in its runtime information."""
    from featuretap.runtimes.openvino_runtime import write_file

    write_file(graph_of(model), path, metadata)


def as_tensors(opened: Opened) -> Run:
    """Return a session's run for tensors on the CPU, without copies."""
    return lambda images: [torch.from_numpy(array) for array in opened.run(images.contiguous().numpy())]


def _open(session: str, path: Path, threads: int | None) -> tuple[Mapping[str, str], Run]:
    opened: Opened = load(session)(path, threads=threads or torch.get_num_threads())
    return opened.metadata, as_tensors(opened)
