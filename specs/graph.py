"""A builder for ONNX graphs that works without PyTorch.

Layers and heads name functions that add their nodes to a `Graph` (`Layer.nodes`, `HeadSpec.nodes`). Tensors of the
graph are referred to by name, as `str`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featuretap.specs.layers import Activation
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import NodesError

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]

IMAGE = "image"
"""Name of the graph's input (N, C, H, W)."""

STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Graph:
    """Nodes and constants of an ONNX graph with the input `image` (N, C, H, W).

    Args:
        tensors: tensors of the model by name, in the native layout of files (`stages.C1.0.conv.weight`, `head.…`).
        norm_eps: batch-norm epsilon of each part ("backbone", "head", or "heads.NAME" for several heads), and of single
            norms by path where it differs.
        preprocessing: preprocessing of the model's images, for heads that normalize images.

    Examples:
        >>> import numpy as np
        >>> from featuretap.specs.graph import Graph
        >>> from featuretap.specs.preprocessing import Preprocessing
        >>> graph = Graph({"conv.weight": np.ones((8, 3, 3, 3))}, {"backbone": 1e-5}, Preprocessing())
        >>> y = graph.activation(graph.convolution("image", "conv", stride=2, padding=1), "relu")
        >>> y, [node.op_type for node in graph.nodes], list(graph.constants)
        ('Relu_1', ['Conv', 'Relu'], ['conv.weight'])
    """

    def __init__(
        self, tensors: Mapping[str, Array], norm_eps: Mapping[str, float], preprocessing: Preprocessing
    ) -> None:
        self.tensors = tensors
        self.norm_eps = norm_eps
        self.preprocessing = preprocessing
        self.images = IMAGE
        """Tensor that the backbone reads. A detector replaces it with the images it has preprocessed."""
        self.head = "head."
        """Prefix in `tensors` of the head being written. The head itself always uses the prefix "head."."""
        self.maps: dict[tuple[str, str], str] = {}
        """Mapping from (path, input) of a layer to its output, so that several heads share the backbone's layers."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.integers: set[str] = set()
        """Names of int64 tensors that may be outputs. All other tensors are float32."""
        self.intermediate: dict[str, str] = {}
        """Mapping from name to tensor of a detector's raw predictions, before boxes are selected; for comparisons."""

    def for_head(self, name: str, images: str, preprocessing: Preprocessing) -> Graph:
        """Return a view of this graph for writing one of several heads.

        Args:
            name: name of the head in the model.
            images: tensor (N, C, H, W) that the head reads.
            preprocessing: preprocessing of the model of backbone and head.

        Returns:
            A graph that shares the nodes and constants of this one.
        """
        graph = copy(self)
        graph.head, graph.images, graph.preprocessing = f"heads.{name}.", images, preprocessing
        return graph

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output and return the name of its output.

        Args:
            operator: ONNX operator, such as "Conv".
            *inputs: names of the input tensors; "" for an omitted input.
            **attributes: attributes of the operator.

        Returns:
            The name of the output tensor.
        """
        (output,) = self.node_with_outputs(operator, 1, *inputs, **attributes)
        return output

    def node_with_outputs(self, operator: str, outputs: int, /, *inputs: str, **attributes: Any) -> list[str]:
        """Append a node with several outputs and return their names.

        Args:
            operator: ONNX operator, such as "TopK".
            outputs: number of outputs.
            *inputs: names of the input tensors; "" for an omitted input.
            **attributes: attributes of the operator.

        Returns:
            The names of the output tensors.
        """
        import onnx.helper

        name = f"{operator}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operator, inputs, names, name, **attributes))
        return names

    def integer(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node whose one output is int64, and return the name of the output.

        Args:
            operator: ONNX operator, such as "Shape".
            *inputs: names of the input tensors; "" for an omitted input.
            **attributes: attributes of the operator.

        Returns:
            The name of the output tensor.
        """
        name = self.node(operator, *inputs, **attributes)
        self.integers.add(name)
        return name

    def constant(self, values: Any, name: str = "") -> str:
        """Add a constant and return its name.

        Args:
            values: an array or numbers. Floats are stored as float32, integers as int64.
            name: name of the constant; by default a new one.

        Returns:
            The name of the constant.
        """
        array = np.asarray(values)
        kind = np.float32 if array.dtype.kind == "f" else np.int64
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array, dtype=kind)
        return name

    def has(self, name: str) -> bool:
        """Return whether the model has a tensor `name`."""
        return self._stored(name) in self.tensors

    def tensor(self, name: str) -> Array:
        """Return the model's tensor `name` as float32.

        Args:
            name: featuretap's name of the tensor.

        Returns:
            A float32 array.

        Raises:
            NodesError: the model has no such tensor.
        """
        stored = self._stored(name)
        if stored not in self.tensors:
            raise NodesError(f"the model has no tensor {stored!r}")
        return self.tensors[stored].astype(np.float32, copy=False)

    def convolution(
        self,
        x: str,
        path: str,
        norm: str = "",
        *,
        stride: int = 1,
        padding: int | tuple[int, int] | None = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> str:
        """Append a convolution on (N, C, H, W), with an optional batch norm folded in, and return its output.

        Args:
            x: the input tensor.
            path: path of the convolution. Its tensors are `path.weight` and, optionally, `path.bias`.
            norm: path of the batch norm that follows; "" for none.
            stride: stride in pixels.
            padding: pixels added on every side, or (before, after) in each dimension; None for TensorFlow's rule
                "SAME".
            dilation: distance between neighboring weights in pixels.
            groups: number of groups that the channels are divided into.

        Returns:
            The name of the output tensor (N, C', H', W').

        Raises:
            NodesError: the norm is not a batch norm with running statistics.
        """
        names = self._weights(path, norm)
        kernel = list(self.constants[names[0]].shape[2:])
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [stride] * 2, "dilations": [dilation] * 2}
        if padding is None:
            attributes["auto_pad"] = "SAME_UPPER"
        else:
            before, after = (padding, padding) if isinstance(padding, int) else padding
            attributes["pads"] = [before, before, after, after]
        return self.node("Conv", x, *names, group=groups, **attributes)

    def linear(self, x: str, path: str, norm: str = "") -> str:
        """Append a linear layer on (N, C), with an optional batch norm folded in, and return its output.

        Args:
            x: the input tensor.
            path: path of the layer.
            norm: path of the batch norm that follows; "" for none.

        Returns:
            The name of the output tensor (N, C').
        """
        return self.node("Gemm", x, *self._weights(path, norm), transB=1)

    def activation(self, x: str, activation: Activation | None) -> str:
        """Append an `activation` ("relu", "relu6" or "hard_swish") on `x` and return its output; None returns `x`."""
        if activation is None:
            return x
        if activation == "relu6":
            return self.node("Clip", x, self.constant(0.0, "zero"), self.constant(6.0, "six"))
        return self.node({"relu": "Relu", "hard_swish": "HardSwish"}[activation], x)

    def size_of(self, x: str) -> str:
        """Append nodes that compute the height and width of `x` (N, C, H, W) as int64 (2,)."""
        return self.node("Shape", x, start=2, end=4)

    def resize(self, x: str, size: str, mode: str = "linear", coordinates: str = "") -> str:
        """Append a resize of (N, C, H, W), with the semantics of `torch.nn.functional.interpolate`.

        Args:
            x: the input tensor.
            size: tensor int64 (2,) with height and width, such as `size_of` returns.
            mode: "linear" (bilinear, `align_corners=False`) or "nearest".
            coordinates: ONNX's `coordinate_transformation_mode`; by default, the one that matches PyTorch.

        Returns:
            The name of the output tensor (N, C, height, width).
        """
        default = {"linear": "half_pixel", "nearest": "asymmetric"}[mode]
        attributes = {"coordinate_transformation_mode": coordinates or default}
        # All four sizes are given because ONNX Runtime 1.32 ignores `axes` when it converts a graph to channels last.
        sizes = self.node("Concat", self.node("Shape", x, start=0, end=2), size, axis=0)
        return self.node("Resize", x, "", "", sizes, mode=mode, nearest_mode="floor", **attributes)

    def _weights(self, path: str, norm: str) -> list[str]:
        """Add the weight and optional bias of a layer as constants, with the norm folded in, and return their names."""
        weight = self.tensor(f"{path}.weight")
        bias = self.tensor(f"{path}.bias") if self.has(f"{path}.bias") else None
        # The norms of a fused model are already folded and have no tensors.
        if norm and any(self.has(f"{norm}.{kind}") for kind in STATISTICS):
            weight, bias = self._fold(weight, bias, norm)
        names = [self.constant(weight, self._stored(f"{path}.weight"))]
        return names if bias is None else [*names, self.constant(bias, self._stored(f"{path}.bias"))]

    def _stored(self, name: str) -> str:
        """Return the name of a tensor in `tensors`, which has another prefix for one of several heads."""
        return self.head + name.removeprefix("head.") if name.startswith("head.") else name

    def _fold(self, weight: Array, bias: Array | None, norm: str) -> tuple[Array, Array]:
        missing = [kind for kind in STATISTICS if not self.has(f"{norm}.{kind}")]
        if missing:
            raise NodesError(f"{norm} is not a batch norm with running statistics: it has no {missing[0]}")
        gamma, beta, mean, variance = (self.tensor(f"{norm}.{kind}").astype(np.float64) for kind in STATISTICS)
        scale = gamma / np.sqrt(variance + self._eps(norm))
        shift = beta - mean * scale + (0 if bias is None else bias * scale)
        return weight * scale.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1)), shift

    def _eps(self, norm: str) -> float:
        part = self.head.removesuffix(".") if norm.startswith("head.") else "backbone"
        eps = self.norm_eps.get(self._stored(norm), self.norm_eps.get(part))
        if eps is None:
            raise NodesError(f"the epsilon of the {part}'s batch norms is unknown")
        return eps
