"""Write ONNX graphs from specs and tensors, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from featuretap.backbones.nodes import backbone_nodes
from featuretap.specs import BackboneSpec, ModelSpec, MultiHeadSpec
from featuretap.specs.graph import IMAGE, Graph
from featuretap.specs.head import backbone_of
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import NodesError
from featuretap.support.version import __version__

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

OPSET, IR_VERSION = 21, 10
"""ONNX 1.17, which ONNX Runtime 1.20 and OpenVINO 2025.0 support. Opset 21 is the first with a correct
`GroupNormalization`."""

Network: TypeAlias = BackboneSpec | ModelSpec | MultiHeadSpec

EXAMPLES = ((224, 288), (352, 416))
"""Two image sizes. Output dimensions that are equal for both do not depend on the size."""


def write_graph(
    spec: Network,
    tensors: Mapping[str, NDArray[Any]],
    norm_eps: Mapping[str, float],
    preprocessing: Preprocessing,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    intermediate: bool = False,
) -> onnx.ModelProto:
    """Write a network in evaluation mode as an ONNX graph.

    The input is "image" (batch, in_channels, height, width). Outputs are named.

    Args:
        spec: a table-based backbone, a model with a head, or a model with several heads.
        tensors: name → values, named as in native weights files.
        norm_eps: batch-norm epsilon by part, and by path for norms that differ.
        preprocessing: preprocessing of the images, for heads that normalize them.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.
        intermediate: whether to add a detector's predictions before box selection to the outputs.

    Returns:
        The ONNX model.

    Raises:
        NodesError: a part of the network has no ONNX nodes.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = Graph(tensors, norm_eps, preprocessing)
    outputs = _append(graph, spec)
    if intermediate:
        outputs |= graph.intermediate
    shapes = _output_shapes(spec, size)
    info = []
    renamed: dict[str, str] = {}
    for name, tensor in outputs.items():
        if tensor in renamed or tensor == IMAGE:
            # Two taps may share a tensor, but a tensor has only one name.
            outputs[name] = graph.node("Identity", tensor)
        renamed[outputs[name]] = name
        kind = TensorProto.INT64 if tensor in graph.integers else TensorProto.FLOAT
        known = shapes and name not in graph.intermediate
        shape = [batch or "batch", *shapes.get(name, ())] if known else None
        info.append(helper.make_tensor_value_info(name, kind, shape))
    for node in graph.nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    height, width = size or ("height", "width")
    images = [batch or "batch", backbone_of(spec).in_channels, height, width]
    proto = helper.make_graph(
        graph.nodes,
        spec.name,
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, images)],
        info,
        [numpy_helper.from_array(values, name) for name, values in graph.constants.items()],
    )
    return helper.make_model(
        proto,
        producer_name="featuretap",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def write_onnx(graph: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file, with the metadata in `metadata_props`."""
    from onnx import helper

    helper.set_model_props(graph, dict(sorted(metadata.items())))
    path.write_bytes(graph.SerializeToString())


def _append(graph: Graph, spec: Network) -> dict[str, str]:
    """Append a network and return output → tensor name."""
    if isinstance(spec, MultiHeadSpec):
        return _append_heads(graph, spec)
    if isinstance(spec, BackboneSpec):
        return backbone_nodes(graph, spec, graph.images)
    if not spec.head.nodes:
        raise NodesError(f"the head {spec.head.name!r} has no nodes")
    outputs: dict[str, str] = spec.call(spec.head.nodes, graph=graph)
    return outputs


def _append_heads(graph: Graph, spec: MultiHeadSpec) -> dict[str, str]:
    """Append a backbone with several heads and return "head.output" → tensor name.

    Detectors prepare the images for all heads, so the first detector is appended first. All detectors prepare them the
    same way.
    """
    images = graph.images
    outputs: dict[str, dict[str, str]] = {}
    for name in sorted(spec.heads, key=lambda name: spec.heads[name].head.images != "raw"):
        model = spec.heads[name]
        is_detector = model.head.images == "raw"
        of_head = graph.for_head(name, IMAGE if is_detector else images, graph.preprocessing)
        outputs[name] = _append(of_head, model)
        if is_detector:
            images = of_head.images
            graph.intermediate |= {f"{name}.{output}": tensor for output, tensor in of_head.intermediate.items()}
        elif model.head.task == "segmentation" and images != IMAGE:
            size = graph.size_of(IMAGE)
            outputs[name] = {output: graph.resize(logits, size) for output, logits in outputs[name].items()}
    return {f"{name}.{output}": tensor for name in spec.heads for output, tensor in outputs[name].items()}


def _output_shapes(spec: Network, size: tuple[int, int] | None) -> dict[str, list[int | None]]:
    """Return output → shape without the batch dimension. Dimensions that depend on the image size are None."""
    first, second = (size, size) if size else EXAMPLES
    if isinstance(spec, MultiHeadSpec):
        return {
            f"{name}.{output}": shape
            for name, model in spec.heads.items()
            for output, shape in _output_shapes(model, size).items()
        }
    describe = spec.outputs if isinstance(spec, ModelSpec) else spec.tap_shapes
    others = describe(*second)

    def known(shape: Sequence[int | str], other: Sequence[int | str]) -> list[int | None]:
        pairs = zip(shape, other, strict=True)
        return [side if isinstance(side, int) and side == twin else None for side, twin in pairs]

    return {name: known(shape, others[name]) for name, shape in describe(*first).items()}
