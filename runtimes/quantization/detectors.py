"""Split a detector's graph, so that only the network between preprocessing and box selection is quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx.shape_inference import infer_shapes
from onnx.utils import Extractor
from torch import Tensor

from featuretap.runtimes.onnx_runtime import onnx_session
from featuretap.specs.graph import IMAGE


@dataclass(frozen=True)
class Detector:
    """A detector's graph in three parts.

    Args:
        graph: the full graph, with the predictions among its outputs.
        images: name of the preprocessed images in `graph`; they are the input "image" of `network`.
        preparation: maps images to preprocessed images.
        network: maps preprocessed images to predictions.
        selection: maps predictions and image sizes to boxes.
    """

    graph: onnx.ModelProto
    images: str
    preparation: onnx.ModelProto
    network: onnx.ModelProto
    selection: onnx.ModelProto

    def prepare(self, threads: int) -> Callable[[Tensor], Tensor]:
        """Return a function that preprocesses images (N, C, H, W) in ONNX Runtime, with this number of threads."""
        session = onnx_session(self.preparation.SerializeToString(), threads)
        return lambda images: torch.from_numpy(session.run(None, {IMAGE: images.numpy()})[0])

    def with_network(self, network: onnx.ModelProto) -> onnx.ModelProto:
        """Return the full graph with its network replaced."""
        joined, inside = _copy(self.graph), _copy(network)
        _rename(inside, IMAGE, self.images)
        parts = [self.preparation.graph, inside.graph, self.selection.graph]
        constants = {constant.name: constant for part in parts for constant in part.initializer}
        _replace(joined.opset_import, network.opset_import)
        _replace(joined.graph.node, [node for part in parts for node in part.node])
        _replace(joined.graph.initializer, list(constants.values()))
        return joined


def split_detector(graph: onnx.ModelProto, predictions: Sequence[str]) -> Detector:
    """Split a detector's graph before its first convolution and after the predictions.

    Args:
        graph: the full graph.
        predictions: names of the predictions, which must be outputs of the graph.

    Returns:
        The parts.
    """
    images = next(node.input[0] for node in graph.graph.node if node.op_type == "Conv")
    extractor = Extractor(infer_shapes(graph, data_prop=True))
    detections = [output.name for output in graph.graph.output if output.name not in predictions]
    network = extractor.extract_model([images], list(predictions))
    _rename(network, images, IMAGE)
    return Detector(
        graph,
        images,
        extractor.extract_model([IMAGE], [images]),
        network,
        extractor.extract_model([IMAGE, *predictions], detections),
    )


def without_outputs(graph: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of a graph without the outputs `names`."""
    copied = _copy(graph)
    _replace(copied.graph.output, [output for output in graph.graph.output if output.name not in names])
    return copied


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    return copied


def _rename(graph: onnx.ModelProto, name: str, new: str) -> None:
    """Rename an input of a graph in place."""
    _replace(graph.graph.value_info, [value for value in graph.graph.value_info if value.name != name])
    for value in graph.graph.input:
        value.name = new if value.name == name else value.name
    for node in graph.graph.node:
        node.input[:] = [new if tensor == name else tensor for tensor in node.input]


def _replace(field: Any, values: Sequence[Any]) -> None:
    """Replace the entries of a repeated protobuf field."""
    kept = list(values)
    del field[:]
    field.extend(kept)
