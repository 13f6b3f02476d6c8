"""Which operators of a graph are computed in integers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from featuretap.runtimes.quantization.network import Network, attributes_of

LAYERS = ("Conv", "Gemm")

FINEST_STRIDE = 4
"""Stride of the first maps in integers. The layers before have few weights and large errors: rounding those of the
first depthwise convolution alone changes MobileNetV2's C5 by 12 %. In float32 they are as fast in ONNX Runtime."""


@dataclass(frozen=True)
class Placement:
    """The parts of a graph that are computed in integers.

    Args:
        nodes: names of the nodes.
        activations: tensors that are stored in integers, in the order of the graph.
    """

    nodes: frozenset[str]
    activations: tuple[str, ...]


def place(network: Network, in_float: Collection[str] = ()) -> Placement:
    """Choose the nodes of a network that are computed in integers.

    Args:
        network: in float32.
        in_float: layers, by `layer_name`, that stay in float32.
    """
    in_float_tensors = _early_tensors(network) | _logits(network)
    nodes: set[str] = set()
    activations: dict[str, None] = {}
    for node in network.nodes:
        inputs = [name for name in node.input if name and not network.is_constant(name)]
        is_layer = node.op_type in LAYERS and network.is_constant(node.input[1])
        # Sums, products and means cost less in integers only where what they read is in integers.
        joins = node.op_type in ("Add", "Mul", "HardSwish", "GlobalAveragePool") and len(inputs) == len(node.input)
        joins = joins and all(name in activations for name in inputs)
        if node.output[0] in in_float_tensors or not (is_layer or joins) or (is_layer and layer_name(node) in in_float):
            continue
        nodes.add(node.name)
        activations |= dict.fromkeys(inputs)
        # Logits beyond the range would be cut to one value, and any of them be the largest.
        if node.op_type != "Gemm" or network.only_consumer(node.output[0]):
            activations[after_activation(network, node)] = None
    return Placement(frozenset(nodes), tuple(activations))


def layer_name(node: onnx.NodeProto) -> str:
    """Return the name of a convolution or linear layer: its path in the network."""
    return node.input[1].removesuffix(".weight")


def absorbed(network: Network, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the ReLUs after a node, which the range of integers replaces: values beyond it are cut."""
    found: list[onnx.NodeProto] = []
    after = network.only_consumer(node.output[0])
    while after is not None and after.op_type in ("Relu", "Clip"):
        found.append(after)
        after = network.only_consumer(after.output[0])
    return found


def after_activation(network: Network, node: onnx.NodeProto) -> str:
    """Return the tensor of a node's output after its ReLUs and its gate's hard sigmoid."""
    last = [node, *absorbed(network, node)][-1]
    gate = gate_after(network, node)
    return (gate or last).output[0]


def gate_after(network: Network, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the hard sigmoid after a convolution with a bias, which integers compute as a part of it."""
    after = network.only_consumer(node.output[0])
    is_gate = after is not None and after.op_type == "HardSigmoid" and node.op_type == "Conv" and len(node.input) == 3
    return after if is_gate else None


def _early_tensors(network: Network) -> set[str]:
    """Return the tensors up to the last of those with the fewest channels at a stride below `FINEST_STRIDE`.

    Of inverted bottlenecks that is C1: the next layer expands it, and computes much in integers.
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
    """Return the logits of segmenters: what is resized to be an output, and the sums that it consists of.

    Integers are coarse for images of another size than those that ranges were measured on.
    """
    found = {node.input[0] for node in network.nodes if node.op_type == "Resize" and node.output[0] in network.outputs}
    for node in reversed(network.nodes):
        if node.output[0] in found and node.op_type == "Add":
            found.update(node.input)
    return found
