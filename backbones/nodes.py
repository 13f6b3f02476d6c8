"""The ONNX nodes that a table becomes, written without PyTorch; `modules` has the same layers as modules."""

from __future__ import annotations

from featuretap.specs import BackboneSpec
from featuretap.specs.graph import Graph
from featuretap.specs.layers import Convolution, SqueezeExcite
from featuretap.support.errors import NodesError
from featuretap.support.import_strings import load


def backbone_nodes(graph: Graph, spec: BackboneSpec, images: str) -> dict[str, str]:
    """Append a backbone, and return tap address → tensor (N, C, H', W') in the order of `spec.taps`.

    Args:
        graph: to append to.
        spec: of a table.
        images: tensor (N, in_channels, H, W).

    Raises:
        NodesError: the backbone is no table, or a layer names no function that writes its nodes.
    """
    if not spec.stages:
        raise NodesError(f"{spec.name!r} is no table of layers")
    maps: dict[str, str] = {}
    x = images
    for block in spec.blocks:
        block_input = x
        for path, layer in block.layer_paths():
            reference = getattr(layer, "nodes", "")
            if not reference:
                raise NodesError(f"{type(layer).__name__} layers, such as {path}, have no nodes")
            # Of several heads, the first appends the layers that they share.
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
    """Append a convolution with its batch norm and its activation: (N, C, H, W) → (N, C', H', W')."""
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
    """Append a squeeze-excite: (N, C, H, W) → (N, C, H, W)."""
    pooled = graph.node("GlobalAveragePool", x)
    squeezed = graph.activation(graph.convolution(pooled, f"{path}.reduce"), "relu")
    gate = graph.node("HardSigmoid", graph.convolution(squeezed, f"{path}.expand"), alpha=layer.gate_slope, beta=0.5)
    return graph.node("Mul", x, gate)
