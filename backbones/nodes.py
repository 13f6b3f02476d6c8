"""ONNX nodes of tables, written without PyTorch; the counterpart of `featuretap.backbones.modules`."""

from __future__ import annotations

from featuretap.specs import BackboneSpec
from featuretap.specs.graph import Graph
from featuretap.specs.layers import Convolution, SqueezeExcite
from featuretap.support.errors import NodesError
from featuretap.support.import_strings import load


def backbone_nodes(graph: Graph, spec: BackboneSpec, images: str) -> dict[str, str]:
    """Append the nodes of a backbone.

    Args:
        graph: the graph to append to.
        spec: spec of the backbone, a table.
        images: tensor (N, in_channels, H, W).

    Returns:
        A mapping from tap address to tensor (N, C, H', W'), in the order of `spec.taps`.

    Raises:
        NodesError: the backbone is not a table, or a layer does not define its nodes.
    """
    if not spec.stages:
        raise NodesError(f"{spec.name!r} is not a table of layers")
    maps: dict[str, str] = {}
    x = images
    for block in spec.blocks:
        block_input = x
        for path, layer in block.layer_paths():
            reference = getattr(layer, "nodes", "")
            if not reference:
                raise NodesError(f"{type(layer).__name__} layers, such as {path}, define no ONNX nodes")
            # With several heads, the nodes of shared layers already exist.
            if (path, x) not in graph.maps:
                graph.maps[path, x] = load(reference)(graph, layer, path, x)
            x = maps[path] = graph.maps[path, x]
        if block.shortcut:
            if (block.path, x) not in graph.maps:
                graph.maps[block.path, x] = graph.node("Add", block_input, x)
            x = graph.maps[block.path, x]
        maps[block.path] = x
    return {address: maps[path] for address, path in spec.paths.items()}


def convolution_nodes(graph: Graph, layer: Convolution, path: str, x: str) -> str:
    """Append a convolution with batch norm and activation: (N, C, H, W) → (N, C', H', W')."""
    y = graph.convolution(
        x,
        f"{path}.conv",
        f"{path}.norm",
        stride=layer.stride,
        padding=layer.pads,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    return graph.activation(y, layer.activation)


def squeeze_excite_nodes(graph: Graph, layer: SqueezeExcite, path: str, x: str) -> str:
    """Append a squeeze-excite layer: (N, C, H, W) → (N, C, H, W)."""
    pooled = graph.node("GlobalAveragePool", x)
    squeezed = graph.activation(graph.convolution(pooled, f"{path}.reduce"), "relu")
    gate = graph.node("HardSigmoid", graph.convolution(squeezed, f"{path}.expand"), alpha=layer.gate_slope, beta=0.5)
    return graph.node("Mul", x, gate)
