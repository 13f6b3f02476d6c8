"""LR-ASPP and DeepLabV3 as ONNX nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featuretap.backbones.nodes import backbone_nodes
from featuretap.specs import BackboneSpec
from featuretap.specs.graph import Graph

WINDOW, STEPS = 49, (16, 20)
"""Size of LR-ASPP's pooling windows in pixels, and their strides (arXiv 1905.02244, section 6.4)."""

GATES = {"hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}), "sigmoid": ("Sigmoid", {})}


def lraspp_nodes(
    backbone: BackboneSpec,
    *,
    graph: Graph,
    num_classes: int,
    inter_channels: int,
    pooling: str,
    gate: str,
    gate_bias: bool,
) -> dict[str, str]:
    """Append the nodes of a segmenter with LR-ASPP, and return its logits (N, num_classes, H, W) as "out"."""
    maps = backbone_nodes(graph, backbone, graph.images)
    fine, coarse = sorted(maps, key=lambda address: backbone.taps[address].stride)
    fine, coarse = maps[fine], maps[coarse]
    means = _window_means(graph, coarse) if pooling == "window" else graph.node("GlobalAveragePool", coarse)
    operator, attributes = GATES[gate]
    gates = graph.node(operator, graph.convolution(means, "head.gate.0"), **attributes)
    if pooling == "window":
        gates = graph.resize(gates, graph.size_of(coarse))
    features = graph.activation(graph.convolution(coarse, "head.features.0", "head.features.1"), "relu")
    gated = graph.resize(graph.node("Mul", features, gates), graph.size_of(fine))
    low = graph.convolution(fine, "head.low_classifier")
    logits = graph.node("Add", low, graph.convolution(gated, "head.high_classifier"))
    return _enlarged(graph, {"out": logits})


def deeplab_v3_nodes(
    backbone: BackboneSpec, *, graph: Graph, num_classes: int, auxiliary: bool, atrous_rates: Sequence[int]
) -> dict[str, str]:
    """Append the nodes of a segmenter with DeepLabV3, and return its logits (N, num_classes, H, W).

    The logits are called "out", and those of the auxiliary output "aux".
    """
    feature, *others = backbone_nodes(graph, backbone, graph.images).values()
    aspp = "head.classifier.0"
    branches = [_layer(graph, feature, f"{aspp}.convs.0")]
    branches += [
        _layer(graph, feature, f"{aspp}.convs.{index}", padding=rate, dilation=rate)
        for index, rate in enumerate(atrous_rates, start=1)
    ]
    pooled = f"{aspp}.convs.{len(branches)}"
    mean = graph.convolution(graph.node("GlobalAveragePool", feature), f"{pooled}.1", f"{pooled}.2")
    size = graph.node("Shape", branches[0])
    branches.append(graph.node("Expand", graph.activation(mean, "relu"), size))
    x = _layer(graph, graph.node("Concat", *branches, axis=1), f"{aspp}.project")
    logits = {"out": _classifier(graph, x, "head.classifier", first=1)}
    if auxiliary:
        logits["aux"] = _classifier(graph, others[0], "head.auxiliary", first=0)
    return _enlarged(graph, logits)


def _layer(graph: Graph, x: str, path: str, *, padding: int = 0, dilation: int = 1) -> str:
    y = graph.convolution(x, f"{path}.0", f"{path}.1", padding=padding, dilation=dilation)
    return graph.activation(y, "relu")


def _classifier(graph: Graph, x: str, path: str, first: int) -> str:
    """Append a 3×3 convolution, the module `first` of a chain, with its norm, and the logits, the module 4."""
    y = graph.convolution(x, f"{path}.{first}", f"{path}.{first + 1}", padding=1)
    return graph.convolution(graph.activation(y, "relu"), f"{path}.4")


def _window_means(graph: Graph, x: str) -> str:
    """Append means over windows, equal to those of `avg_pool2d` with windows no larger than the map.

    The map is padded so that one window fits, and the padding does not count in the mean. Additional windows that
    extend beyond a map of at least 49 pixels are cut off.
    """
    padding = [0, 0, WINDOW - 1, WINDOW - 1]
    means = graph.node(
        "AveragePool", x, kernel_shape=[WINDOW] * 2, strides=list(STEPS), pads=padding, count_include_pad=0
    )
    steps = graph.node("Div", graph.node("Sub", graph.size_of(x), graph.constant(WINDOW)), graph.constant(STEPS))
    windows = graph.node("Max", graph.node("Add", steps, graph.constant(1)), graph.constant(1))
    return graph.node("Slice", means, graph.constant([0, 0]), windows, graph.constant([2, 3]))


def _enlarged(graph: Graph, logits: Mapping[str, str]) -> dict[str, str]:
    """Append a resize of logits to the size of the images."""
    return {name: graph.resize(values, graph.size_of(graph.images)) for name, values in logits.items()}
