"""ONNX Runtime and OpenVINO for PyTorch tensors, which share memory with NumPy arrays."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from featuretap.runtimes import graphs
from featuretap.runtimes.exportable import Exportable, Run
from featuretap.runtimes.model_graphs import make_graph, open_graph
from featuretap.runtimes.signature import Opened
from featuretap.runtimes.verification import verify_outputs
from featuretap.specs.runtime import FLOAT32
from featuretap.support.import_strings import load


def compile_graph(model: Exportable, *, threads: int | None) -> Run:
    """Return a function that runs a model's ONNX graph in its runtime, with a number of threads."""
    graph = make_graph(model)
    if model.precision != FLOAT32:
        # Rounding errors would hide a wrong graph, so the float32 graph is verified first.
        exact = replace(model, precision=FLOAT32)
        verify_outputs(exact, as_tensors(open_graph(exact, graph, threads)))
    return as_tensors(open_graph(model, graph, threads))


def open_onnx(path: Path, *, threads: int | None) -> tuple[Mapping[str, str], Run]:
    """Open an ONNX file in ONNX Runtime.

    Args:
        path: path of the file.
        threads: number of threads; None for PyTorch's number.

    Returns:
        The metadata and a function that runs the model.
    """
    return _open("featuretap.runtimes.onnx_runtime:open_session", path, threads)


def open_openvino(path: Path, *, threads: int | None) -> tuple[Mapping[str, str], Run]:
    """Open an .xml file with its .bin file, or an ONNX file, in OpenVINO.

    Args:
        path: path of the .xml or .onnx file.
        threads: number of threads; None for PyTorch's number.

    Returns:
        The metadata and a function that runs the model.
    """
    return _open("featuretap.runtimes.openvino_runtime:open_session", path, threads)


def write_onnx(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model as an ONNX file, with the metadata in `metadata_props`."""
    graphs.write_onnx(make_graph(model), path, metadata)


def write_openvino(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model as an .xml file and a .bin file, with the metadata in the runtime information."""
    from featuretap.runtimes.openvino_runtime import write_file

    write_file(make_graph(model), path, metadata)


def as_tensors(opened: Opened) -> Run:
    """Return the function of an opened model for CPU tensors, which are not copied."""
    return lambda images: [torch.from_numpy(array) for array in opened.run(images.contiguous().numpy())]


def _open(session: str, path: Path, threads: int | None) -> tuple[Mapping[str, str], Run]:
    opened: Opened = load(session)(path, threads=threads or torch.get_num_threads())
    return opened.metadata, as_tensors(opened)
