"""Run ONNX graphs node by node in PyTorch, so that gradients of the outputs reach every activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from featuretap.runtimes.onnx_runtime import onnx_session

Attributes = Mapping[str, Any]


class Network:
    """An ONNX graph with its tensors indexed by name.

    Args:
        graph: a graph whose only input is the images.
    """

    def __init__(self, graph: onnx.ModelProto) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = list(graph.graph.node)
        self.image: str = graph.graph.input[0].name
        self.outputs = [output.name for output in graph.graph.output]
        self.constants = {
            # PyTorch warns about ONNX's read-only arrays, hence the copy.
            constant.name: torch.from_numpy(numpy_helper.to_array(constant).copy())
            for constant in graph.graph.initializer
        }
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def only_consumer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the only node that reads a tensor; None if several do or the tensor is a graph output."""
        consumers = self.consumers.get(tensor, [])
        return consumers[0] if len(consumers) == 1 and tensor not in self.outputs else None

    def is_constant(self, tensor: str) -> bool:
        """Return whether a tensor is a constant."""
        return tensor in self.constants

    def last_uses(self) -> dict[int, list[str]]:
        """Return node index → tensors that are not read after that node."""
        last = {name: index for index, node in enumerate(self.nodes) for name in (*node.input, *node.output)}
        uses: dict[int, list[str]] = {}
        for name, index in last.items():
            if name and not self.is_constant(name) and name not in self.outputs:
                uses.setdefault(index, []).append(name)
        return uses


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def run_node(node: onnx.NodeProto, inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """Run a node. Gradients pass through the operators in `OPERATORS` only; other nodes run in ONNX Runtime.

    Args:
        node: a node of the graph.
        inputs: inputs in the node's order, None for omitted ones.

    Returns:
        The outputs.
    """
    operator = OPERATORS.get(node.op_type)
    result = operator(attributes_of(node), *inputs) if operator else None
    return [result] if result is not None else _run_in_onnx_runtime(node, inputs)


def _run_in_onnx_runtime(node: onnx.NodeProto, inputs: Sequence[Tensor | None]) -> list[Tensor]:
    arrays = {
        name: tensor.detach().numpy() for name, tensor in zip(node.input, inputs, strict=True) if tensor is not None
    }
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    model = helper.make_model(
        helper.make_graph([node], "node", infos, outputs), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    session = onnx_session(model.SerializeToString(), 1)
    return [torch.from_numpy(array) for array in session.run(list(node.output), arrays)]


def _convolution(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides = attributes.get("strides", [1, 1])
    dilations = attributes.get("dilations", [1, 1])
    top, left, bottom, right = padding_of(attributes, x.shape[2:], weight.shape[2:])
    if (top, left) != (bottom, right):
        x, top, left = functional.pad(x, (left, right, top, bottom)), 0, 0
    return functional.conv2d(x, weight, bias, strides, (top, left), dilations, attributes.get("group", 1))


def padding_of(attributes: Attributes, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the padding of a convolution in pixels.

    Args:
        attributes: attributes of the node.
        size: (height, width) of the input.
        kernel: (height, width) of the kernel.

    Returns:
        Padding at the top, left, bottom and right.
    """
    if attributes.get("auto_pad", b"NOTSET") != b"SAME_UPPER":
        top, left, bottom, right = attributes.get("pads", [0] * 4)
        return top, left, bottom, right
    totals = [
        max((-(-side // stride) - 1) * stride + (length - 1) * dilation + 1 - side, 0)
        for side, length, stride, dilation in zip(
            size, kernel, attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1]), strict=True
        )
    ]
    return totals[0] // 2, totals[1] // 2, totals[0] - totals[0] // 2, totals[1] - totals[1] // 2


def _linear(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1 and not attributes.get("transA", 0)
    if not plain:
        return None
    return functional.linear(x, weight if attributes.get("transB", 0) else weight.T, bias)


def _clip(_: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x.clamp(None if low is None else low.item(), None if high is None else high.item())


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    return (x * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5)).clamp(0, 1)


def _resize(
    attributes: Attributes, x: Tensor, _: Tensor | None = None, __: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor | None:
    """Resize as PyTorch does; None for modes that PyTorch does not have."""
    if sizes is None or x.ndim != 4:
        return None
    size = sizes[-2:].tolist()
    way = attributes.get("mode", b"nearest"), attributes.get("coordinate_transformation_mode", b"half_pixel")
    if way == (b"linear", b"half_pixel"):
        return functional.interpolate(x, size, mode="bilinear", align_corners=False)
    if way == (b"nearest", b"asymmetric") and attributes.get("nearest_mode") == b"floor":
        return functional.interpolate(x, size, mode="nearest")
    return None


def _reshape(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[axis] if side == 0 else side for axis, side in enumerate(shape.tolist())])


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor | None:
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    if (top, left) != (bottom, right) or "auto_pad" in attributes or attributes.get("ceil_mode", 0):
        return None
    return functional.avg_pool2d(
        x,
        attributes["kernel_shape"],
        attributes.get("strides", [1, 1]),
        (top, left),
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )


def _group_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.group_norm(x, attributes["num_groups"], scale, bias, attributes.get("epsilon", 1e-5))


OPERATORS: dict[str, Callable[..., Tensor | None]] = {
    "Add": lambda _, x, y: x + y,
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Concat": lambda attributes, *inputs: torch.cat(inputs, attributes["axis"]),
    "Conv": _convolution,
    "Div": lambda _, x, y: x / y if x.is_floating_point() else None,
    "Expand": lambda _, x, shape: x * x.new_ones(shape.tolist()),
    "Flatten": lambda attributes, x: x.flatten(attributes.get("axis", 1)) if attributes.get("axis", 1) > 0 else None,
    "Gemm": _linear,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: functional.hardswish(x),
    "Identity": lambda _, x: x,
    "Mul": lambda _, x, y: x * y,
    "Relu": lambda _, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Sub": lambda _, x, y: x - y,
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
}
"""ONNX operators implemented in PyTorch. A function that returns None leaves the node to ONNX Runtime."""
