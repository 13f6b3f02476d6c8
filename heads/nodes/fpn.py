"""The feature pyramid as ONNX nodes."""

from __future__ import annotations

from featuretap.backbones.nodes import backbone_nodes
from featuretap.heads.fpn import GROUPS, pyramid_taps
from featuretap.specs import BackboneSpec
from featuretap.specs.graph import Graph

PATH = "head.fpn"
EPS = 1e-5
"""Epsilon of PyTorch's group norm."""


def fpn_nodes(
    backbone: BackboneSpec,
    *,
    graph: Graph,
    out_channels: int,
    extra_levels: str | None,
    fpn_norm: str | None,
    depthwise: bool,
    num_classes: None,
) -> dict[str, str]:
    """Append the nodes of a backbone with its pyramid, and return the levels, each a map (N, out_channels, H', W')."""
    maps = list(backbone_nodes(graph, backbone, graph.images).values())
    laterals = [_block(graph, x, f"{PATH}.inner_blocks.{index}", fpn_norm) for index, x in enumerate(maps)]
    merged = laterals[-1:]
    for lateral in reversed(laterals[:-1]):
        enlarged = graph.resize(merged[0], graph.size_of(lateral), "nearest")
        merged.insert(0, graph.node("Add", lateral, enlarged))
    levels = [
        _smooth(graph, x, f"{PATH}.layer_blocks.{index}", fpn_norm, depthwise, out_channels)
        for index, x in enumerate(merged)
    ]
    if extra_levels == "pool":
        levels.append(graph.node("MaxPool", levels[-1], kernel_shape=[1, 1], strides=[2, 2]))
    if extra_levels == "p6p7":
        p6 = _added(graph, levels[-1], "p6", depthwise, out_channels)
        levels += [p6, _added(graph, graph.activation(p6, "relu"), "p7", depthwise, out_channels)]
    names = pyramid_taps(backbone, out_channels=out_channels, extra_levels=extra_levels)
    return dict(zip(names, levels, strict=True))


def _smooth(graph: Graph, x: str, path: str, norm: str | None, depthwise: bool, channels: int, stride: int = 1) -> str:
    """Append a 3×3 convolution with its norm, depthwise separable if `depthwise` is True."""
    if depthwise:
        x = graph.convolution(x, f"{path}.depthwise", stride=stride, padding=1, groups=channels)
        return _block(graph, x, f"{path}.pointwise", norm)
    return _block(graph, x, path, norm, padding=1)


def _added(graph: Graph, x: str, name: str, depthwise: bool, channels: int) -> str:
    """Append the 3×3 convolution of an extra level, which halves the size of the map."""
    path = f"{PATH}.extra_blocks.{name}"
    if depthwise:
        return _smooth(graph, x, path, None, depthwise, channels, stride=2)
    return graph.convolution(x, path, stride=2, padding=1)


def _block(graph: Graph, x: str, path: str, norm: str | None, padding: int = 0) -> str:
    """Append a convolution and its norm, the modules 0 and 1 of a torchvision block."""
    y = graph.convolution(x, f"{path}.0", f"{path}.1" if norm == "batch_norm" else "", padding=padding)
    if norm != "group_norm":
        return y
    scale, bias = (graph.constant(graph.tensor(f"{path}.1.{kind}"), f"{path}.1.{kind}") for kind in ("weight", "bias"))
    return graph.node("GroupNormalization", y, scale, bias, num_groups=GROUPS, epsilon=EPS)
