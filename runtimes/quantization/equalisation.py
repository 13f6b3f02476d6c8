"""Channels of an activation brought to one range, by scales that the layers before and after take up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from featuretap.runtimes.quantization.network import Network, attributes_of
from featuretap.runtimes.quantization.placement import LAYERS, Placement
from featuretap.runtimes.quantization.statistics import Array, Statistics

LARGEST_SCALE = 8
"""Between two channels, which keeps the weights of channels that are hardly used from being magnified."""

COMMUTING = ("Relu", "Clip", "Min", "Add", "GlobalAveragePool", "MaxPool", "Flatten", "Resize")
"""Operators that compute the same channel by channel, whatever positive scales the channels have."""


def equalise(
    network: Network, placement: Placement, statistics: Mapping[str, Statistics]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a graph of the same function whose activations have channels of one range, and tensor → scales (C,).

    Cross-layer equalisation (arXiv 1906.04721, section 4.1) of all tensors that scale together: the residual stream of
    a level, with every layer that adds to it, has one scale for each channel. An activation is divided by it, and the
    layers that read it multiply it back. Per-channel weights make that free for the layers before and for depthwise
    ones. A ReLU6 of a scaled channel cuts at 6 divided by the scale. Hard-swish and gates do not scale, and what they
    read and return stays as it is.

    Args:
        network: in float32.
        placement: of the integers.
        statistics: of the activations.
    """
    scales: dict[str, Array] = {}
    for tensors in _groups(network, placement):
        extremes = [_extremes(statistics[name]) for name in placement.activations if name in tensors]
        if extremes:
            relative = np.max([each / max(each.max(), np.finfo(np.float64).tiny) for each in extremes], axis=0)
            # The square root shares the range of the channels between the activation and the weights that read it.
            # Where no weights do, it leaves channels room for larger values than those of a few images.
            scales |= dict.fromkeys(tensors, np.maximum(np.sqrt(relative), 1 / LARGEST_SCALE))
    return _rescaled(network, scales), scales


def _extremes(statistics: Statistics) -> Array:
    """Return the largest absolute value of each channel (C,)."""
    return np.maximum(statistics.high, -statistics.low)


def _groups(network: Network, placement: Placement) -> list[set[str]]:
    """Return the sets of tensors whose channels have to scale alike, those left out that cannot scale."""
    groups: dict[str, set[str]] = {}
    fixed: set[str] = {network.image}

    def join(names: Iterable[str]) -> None:
        joined = set[str]().union(*(groups.get(name, {name}) for name in names))
        groups.update(dict.fromkeys(joined, joined))

    for node in network.nodes:
        inputs = [name for name in node.input if name and not network.is_constant(name)]
        if node.op_type in LAYERS and network.is_constant(node.input[1]):
            join(node.output)
            after = network.only_consumer(node.output[0])
            in_float = node.name not in placement.nodes
            # In float, an upper limit of each channel would take an operator of its own.
            if node.op_type == "Gemm" or (in_float and after is not None and after.op_type == "Clip"):
                fixed.update(node.output)
        elif _commutes(network, node):
            join([*inputs[: 2 if node.op_type == "Add" else 1], *node.output])
        elif _is_gated(network, node):
            join([inputs[0], *node.output])
            fixed.add(inputs[1])
        else:
            fixed.update([*inputs, *node.output])
    unique = {id(group): group for group in groups.values()}
    return [group for group in unique.values() if not group & fixed]


def _commutes(network: Network, node: onnx.NodeProto) -> bool:
    if node.op_type == "Clip":
        # Only a lower limit of 0 stays where it is.
        return (
            len(node.input) == 3 and network.is_constant(node.input[1]) and not network.constants[node.input[1]].any()
        )
    if node.op_type == "Add":
        return not any(network.is_constant(name) for name in node.input)
    return node.op_type in COMMUTING and node.op_type != "Min"


def _is_gated(network: Network, node: onnx.NodeProto) -> bool:
    """Return whether a node multiplies a map by the gate of a squeeze-excite, in that order."""
    gates = [other for other in network.nodes if other.output[0] == node.input[-1]]
    return node.op_type == "Mul" and bool(gates) and gates[0].op_type == "HardSigmoid"


def _rescaled(network: Network, scales: Mapping[str, Array]) -> onnx.ModelProto:
    """Return the graph with scaled constants. Outputs keep their values: they are multiplied back."""
    constants = {name: values.double() for name, values in network.constants.items()}
    nodes: list[onnx.NodeProto] = []
    outputs = {name: f"{name}_scaled" for name in network.outputs if name in scales}
    added: dict[str, np.ndarray] = {}
    for node in network.nodes:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        scale_of = {name: torch.from_numpy(scales[name]) for name in (*node.input, *node.output) if name in scales}
        if node.op_type in LAYERS:
            weight, bias = node.input[1], node.input[2:]
            if node.input[0] in scale_of:
                before = scale_of[node.input[0]]
                depthwise = attributes_of(node).get("group", 1) > 1
                constants[weight] = constants[weight] * _along(before, constants[weight].ndim, 0 if depthwise else 1)
            if node.output[0] in scale_of:
                after = scale_of[node.output[0]]
                constants[weight] = constants[weight] / _along(after, constants[weight].ndim, 0)
                for name in bias:
                    constants[name] = constants[name] / after
        names = [outputs.get(name, name) for name in copied.output]
        copied.input[:] = [outputs.get(name, name) for name in copied.input]
        if node.op_type == "Clip" and node.output[0] in scale_of:
            limit = f"{node.output[0]}_limit"
            added[limit] = (constants[node.input[2]] / _along(scale_of[node.output[0]], 4, 1)).float().numpy()
            positive = f"{node.output[0]}_positive"
            nodes.append(helper.make_node("Relu", [copied.input[0]], [positive], name=positive))
            copied = helper.make_node("Min", [positive, limit], names, name=node.name)
        copied.output[:] = names
        nodes.append(copied)
    for name, scaled in outputs.items():
        factor = f"{name}_scales"
        added[factor] = scales[name].astype(np.float32).reshape(1, -1, 1, 1)
        nodes.append(helper.make_node("Mul", [scaled, factor], [name], name=f"{name}_unscaled"))
    graph = onnx.ModelProto()
    graph.CopyFrom(network.graph)
    del graph.graph.node[:], graph.graph.initializer[:]
    graph.graph.node.extend(nodes)
    arrays = {name: values.to(network.constants[name].dtype).numpy() for name, values in constants.items()}
    graph.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in (arrays | added).items())
    return graph


def _along(scale: torch.Tensor, dimensions: int, axis: int) -> torch.Tensor:
    """Return scales (C,) so that they multiply along an axis."""
    return scale.reshape([-1 if each == axis else 1 for each in range(dimensions)])
