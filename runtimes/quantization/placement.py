"""Choose which operators of a graph run in integers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from featuretap.runtimes.quantization.network import Network, attributes_of

LAYERS = ("Conv", "Gemm")

FINEST_STRIDE = 4
"""Stride of the first maps that are quantized. Earlier layers have few weights but large errors: quantizing the first
depthwise convolution alone changes MobileNetV2's C5 by 12 %. In ONNX Runtime they are as fast in float32."""


@dataclass(frozen=True)
class Placement:
    """The parts of a graph that run in integers.

    Args:
        nodes: names of the nodes.
        activations: names of the tensors stored as integers, in graph order.
    """

    nodes: frozenset[str]
    activations: tuple[str, ...]


def place(network: Network, in_float: Collection[str] = ()) -> Placement:
    """Choose the nodes of a network that run in integers.

    Args:
        network: the float32 network.
        in_float: names of layers that stay in float32, as `layer_name` returns them.

    Returns:
        The placement.
    """
    in_float_tensors = _early_tensors(network) | _logits(network)
    nodes: set[str] = set()
    activations: dict[str, None] = {}
    for node in network.nodes:
        inputs = [name for name in node.input if name and not network.is_constant(name)]
        is_layer = node.op_type in LAYERS and network.is_constant(node.input[1])
        # Sums, products and means are faster in integers only if all of their inputs are integers already.
        joins = node.op_type in ("Add", "Mul", "HardSwish", "GlobalAveragePool") and len(inputs) == len(node.input)
        joins = joins and all(name in activations for name in inputs)
        if node.output[0] in in_float_tensors or not (is_layer or joins) or (is_layer and layer_name(node) in in_float):
            continue
        nodes.add(node.name)
        activations |= dict.fromkeys(inputs)
        # Logits stay in float32: clipped to the range, the largest ones would become equal.
        if node.op_type != "Gemm" or network.only_consumer(node.output[0]):
            activations[activated_output(network, node)] = None
    return Placement(frozenset(nodes), tuple(activations))


def layer_name(node: onnx.NodeProto) -> str:
    """Return the name of a convolution or linear layer, its path in the network."""
    return node.input[1].removesuffix(".weight")


def fused_relus(network: Network, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the ReLUs after a node. Clipping to the integer range replaces them."""
    found: list[onnx.NodeProto] = []
    after = network.only_consumer(node.output[0])
    while after is not None and after.op_type in ("Relu", "Clip"):
        found.append(after)
        after = network.only_consumer(after.output[0])
    return found


def activated_output(network: Network, node: onnx.NodeProto) -> str:
    """Return the output tensor of a node after its ReLUs or its hard sigmoid."""
    last = [node, *fused_relus(network, node)][-1]
    gate = fused_gate(network, node)
    return (gate or last).output[0]


def fused_gate(network: Network, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the hard sigmoid after a convolution with a bias, or None. Integers compute both as one layer."""
    after = network.only_consumer(node.output[0])
    is_gate = after is not None and after.op_type == "HardSigmoid" and node.op_type == "Conv" and len(node.input) == 3
    return after if is_gate else None


def _early_tensors(network: Network) -> set[str]:
    """Return the tensors that come before the first quantized layer.

    They end at the last tensor with the fewest channels at a stride below `FINEST_STRIDE`. In networks of inverted
    bottlenecks that is C1: the next layer expands it and gains most from integers.
    """
    strides, channels = {network.image: 1}, {network.image: 0}
    early: list[str] = []
    for node in network.nodes:
        inputs = [name for name in node.input if name in strides]
        if not inputs:
            continue
        slides = node.op_type in ("Conv", "MaxPool", "AveragePool")
        step = max(attributes_of(node).get("strides", [1])) if slides else 1
        for name in node.output:
            strides[name] = max(strides[each] for each in inputs) * step
            channels[name] = channels[inputs[0]]
            if node.op_type == "Conv" and network.is_constant(node.input[1]):
                channels[name] = len(network.constants[node.input[1]])
            if strides[name] < FINEST_STRIDE:
                early.append(name)
    fewest = min((channels[name] for name in early), default=0)
    count = max((place for place, name in enumerate(early, 1) if channels[name] == fewest), default=0)
    return set(early[:count])


def _logits(network: Network) -> set[str]:
    """Return the logits of segmenters: the inputs of resized outputs, and the terms they are summed from.

    Quantized logits are inaccurate on images of another size than the calibration images.
    """
    found = {node.input[0] for node in network.nodes if node.op_type == "Resize" and node.output[0] in network.outputs}
    for node in reversed(network.nodes):
        if node.output[0] in found and node.op_type == "Add":
            found.update(node.input)
    return found
