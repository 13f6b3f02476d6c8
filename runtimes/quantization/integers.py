"""Write quantized graphs with QuantizeLinear and DequantizeLinear nodes (the QDQ format)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from featuretap.runtimes.quantization.affine import KNEE, Affine
from featuretap.runtimes.quantization.network import Network, attributes_of
from featuretap.runtimes.quantization.placement import LAYERS, Placement, activated_output, fused_gate, fused_relus
from featuretap.runtimes.quantization.ranges import LEVELS
from featuretap.runtimes.quantization.rounding import Rounded


def write_integers(
    network: Network, placement: Placement, affine: Mapping[str, Affine], rounded: Mapping[str, Rounded]
) -> onnx.ModelProto:
    """Return a graph that computes the placed nodes in integers.

    Args:
        network: the float32 network.
        placement: the nodes to compute in integers.
        affine: activation → scale and zero point.
        rounded: weight name → integers of the layer.

    Returns:
        The quantized graph.
    """
    writer = _Writer(network, placement, affine, rounded)
    for node in network.nodes:
        if node.name not in writer.skipped:
            writer.append(node)
    return writer.graph()


class _Writer:
    def __init__(
        self,
        network: Network,
        placement: Placement,
        affine: Mapping[str, Affine],
        rounded: Mapping[str, Rounded],
    ) -> None:
        self.network, self.placement, self.affine, self.rounded = network, placement, affine, rounded
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.read: dict[str, str] = {}
        """Activation → its dequantized tensor, which the quantized nodes read."""
        self.stored: dict[str, Affine] = {}
        """Activations that a quantized node has written as integers, and their scale and zero point."""
        self.skipped: set[str] = set()
        """Nodes that are dropped, since clipping to the integer range does the same."""

    def append(self, node: onnx.NodeProto) -> None:
        """Append a node, quantized if the placement includes it."""
        if node.name not in self.placement.nodes:
            self._append_in_float(node)
        elif node.op_type in LAYERS:
            self._append_layer(node)
        elif node.op_type == "HardSwish" and self.affine[node.input[0]].steps:
            self._append_hard_swish(node)
        else:
            inputs = [self._integers(name) for name in node.input]
            self._finish(node, self._node(node.op_type, inputs, **attributes_of(node)))

    def graph(self) -> onnx.ModelProto:
        """Return the graph of the appended nodes."""
        model = onnx.ModelProto()
        model.CopyFrom(self.network.graph)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input}
        known = {constant.name: constant for constant in self.network.graph.graph.initializer}
        known |= {name: numpy_helper.from_array(values, name) for name, values in self.constants.items()}
        model.graph.initializer.extend(constant for name, constant in known.items() if name in read)
        return model

    def _node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{operator}_integer_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], f"{output}_node", **attributes))
        return output

    def _constant(self, name: str, values: Any) -> str:
        self.constants[name] = np.asarray(values)
        return name

    def _parameters(self, name: str, affine: Affine) -> list[str]:
        scale = self._constant(f"{name}_scale", np.float32(affine.scale))
        return [scale, self._constant(f"{name}_zero", np.uint8(affine.zero))]

    def _append_in_float(self, node: onnx.NodeProto) -> None:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = [self._in_float(name) for name in node.input]
        self.nodes.append(copied)

    def _in_float(self, name: str) -> str:
        return self._integers(name) if name in self.stored else name

    def _integers(self, name: str) -> str:
        """Return the name of the dequantized tensor of an activation, and quantize it first if necessary."""
        if name not in self.read:
            parameters = self._parameters(name, self.affine[name])
            if name not in self.stored:
                self._node("QuantizeLinear", [name, *parameters], f"{name}_quantized")
            # A tensor computed in integers keeps the activation's name, which outputs and float32 nodes refer to.
            output = name if name in self.stored else f"{name}_read"
            self.read[name] = self._node("DequantizeLinear", [f"{name}_quantized", *parameters], output)
        return self.read[name]

    def _finish(self, node: onnx.NodeProto, computed: str) -> None:
        """Quantize a node's result. The ReLUs or the gate that follow the node become part of the quantization."""
        gate = fused_gate(self.network, node)
        name = activated_output(self.network, node)
        self.skipped.update(each.name for each in ([gate] if gate else fused_relus(self.network, node)))
        affine = self.affine[name]
        quantized = f"{name}_quantized"
        if gate:
            # A hard sigmoid ranges from 0 to 1. Dividing its scale by the slope gives the corresponding range of the
            # convolution's output. Reading the same integers with the undivided scale applies the gate.
            slope = attributes_of(gate).get("alpha", 0.2)
            affine = Affine(1 / LEVELS, 0)
            written = self._parameters(f"{name}_before", Affine(affine.scale / slope, 0))
        else:
            written = self._parameters(name, affine)
        self._node("QuantizeLinear", [computed, *written], quantized)
        self.stored[name] = affine
        if gate:
            self.read[name] = self._node("DequantizeLinear", [quantized, *self._parameters(name, affine)], name)
        elif name in self.network.outputs:
            self._integers(name)

    def _append_layer(self, node: onnx.NodeProto) -> None:
        rounded = self.rounded[node.input[1]]
        x = self._integers(node.input[0])
        axis = 0 if node.op_type == "Conv" or attributes_of(node).get("transB", 0) else 1
        weight = self._dequantized(node.input[1], rounded.weights, rounded.scales, axis)
        bias = rounded.bias.astype(np.float64)
        gate = fused_gate(self.network, node)
        if gate:
            attributes = attributes_of(gate)
            bias = bias + attributes.get("beta", 0.5) / attributes.get("alpha", 0.2)
        scales = np.float32(self._scale(node.input[0])) * rounded.scales
        limits = np.iinfo(np.int32)
        # With weights near zero, the scale is so small that a very large bias overflows int32.
        integers = np.clip(np.round(bias / scales.astype(np.float64)), limits.min, limits.max).astype(np.int32)
        name = node.input[2] if len(node.input) > 2 else f"{node.input[1]}_bias"
        inputs = [x, weight, self._dequantized(name, integers, scales, 0)]
        if activated_output(self.network, node) in self.affine:
            self._finish(node, self._node(node.op_type, inputs, **attributes_of(node)))
        else:
            self._node(node.op_type, inputs, node.output[0], **attributes_of(node))

    def _scale(self, name: str) -> float:
        return (self.stored.get(name) or self.affine[name]).scale

    def _dequantized(self, name: str, values: NDArray[Any], scales: NDArray[Any], axis: int) -> str:
        zeros = np.zeros(len(scales), values.dtype)
        inputs = [
            self._constant(f"{name}_quantized", values),
            self._constant(f"{name}_scale", scales.astype(np.float32)),
            self._constant(f"{name}_zero", zeros),
        ]
        return self._node("DequantizeLinear", inputs, f"{name}_read", axis=axis)

    def _append_hard_swish(self, node: onnx.NodeProto) -> None:
        """Append x · clip(x + 3, 0, 6) / 6 in integers.

        The second factor is the integers of x, clipped to -3…3 and read with another scale and zero point.
        """
        name = node.input[0]
        x, affine = self._integers(name), self.affine[name]
        low, high = affine.zero - affine.steps, affine.zero + affine.steps
        limits = [self._constant(f"{name}_{end}", np.uint8(value)) for end, value in (("low", low), ("high", high))]
        cut = self._node("Clip", [f"{name}_quantized", *limits], f"{name}_cut")
        parameters = self._parameters(f"{name}_cut", Affine(affine.scale / (2 * KNEE), low))
        factor = self._node("DequantizeLinear", [cut, *parameters], f"{name}_factor")
        self._finish(node, self._node("Mul", [x, factor]))
