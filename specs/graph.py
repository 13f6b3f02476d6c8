"""An ONNX graph in the making, written from tensors without PyTorch.

Layers and heads name functions that write their nodes into a `Graph` (`Layer.nodes`, `HeadSpec.nodes`). A tensor of the
graph is a `str`, its name.
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
"""Name of the input, (N, C, H, W)."""

STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Graph:
    """Nodes and constants of an ONNX graph whose input is `image`, (N, C, H, W).

    Args:
        tensors: name → values of the network, in the native layout of files (`stages.C1.0.conv.weight`, `head.…`).
        norm_eps: epsilon of the batch norms by part ("backbone", "head", or "heads.NAME" of several), and of those that
            differ by their path.
        preprocessing: of the network's images, for heads that normalise them.
    """

    def __init__(
        self, tensors: Mapping[str, Array], norm_eps: Mapping[str, float], preprocessing: Preprocessing
    ) -> None:
        self.tensors = tensors
        self.norm_eps = norm_eps
        self.preprocessing = preprocessing
        self.images = IMAGE
        """The images that the network reads. A detector replaces them by those that it prepared, for other heads."""
        self.head = "head."
        """Prefix of the tensors of the head whose nodes are written, which names it as "head."."""
        self.maps: dict[tuple[str, str], str] = {}
        """Path and input of a layer → its output; heads share the layers of the backbone."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.integers: set[str] = set()
        """Tensors of int64 that may be outputs; all others are of float32."""
        self.intermediate: dict[str, str] = {}
        """Name → tensor of what a detector predicts before it selects boxes, for comparisons."""

    def for_head(self, name: str, images: str, preprocessing: Preprocessing) -> Graph:
        """Return this graph for the nodes of one of several heads.

        Args:
            name: of the head in the model.
            images: tensor (N, C, H, W) that the head reads.
            preprocessing: of the model that the head and the backbone form.
        """
        graph = copy(self)
        graph.head, graph.images, graph.preprocessing = f"heads.{name}.", images, preprocessing
        return graph

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output, and return the name of its output.

        Args:
            operator: of ONNX, such as "Conv".
            *inputs: names of tensors; "" for an input that is left out.
            **attributes: of the operator.
        """
        (output,) = self.node_with_outputs(operator, 1, *inputs, **attributes)
        return output

    def node_with_outputs(self, operator: str, outputs: int, /, *inputs: str, **attributes: Any) -> list[str]:
        """Append a node as `node` does, and return the names of its `outputs`."""
        import onnx.helper

        name = f"{operator}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operator, inputs, names, name, **attributes))
        return names

    def integer(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output as `node` does, and note that the output is of int64."""
        name = self.node(operator, *inputs, **attributes)
        self.integers.add(name)
        return name

    def constant(self, values: Any, name: str = "") -> str:
        """Store values as a constant, floats as float32 and integers as int64, and return its name."""
        array = np.asarray(values)
        kind = np.float32 if array.dtype.kind == "f" else np.int64
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array, dtype=kind)
        return name

    def has(self, name: str) -> bool:
        """Return whether the network has a tensor."""
        return self._stored(name) in self.tensors

    def tensor(self, name: str) -> Array:
        """Return a tensor of the network as float32.

        Raises:
            NodesError: the network lacks it.
        """
        stored = self._stored(name)
        if stored not in self.tensors:
            raise NodesError(f"there is no tensor {stored!r} to write the graph from")
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
        """Append a convolution of (N, C, H, W), with a batch norm folded into it.

        Args:
            x: the input.
            path: of the convolution in the network: its tensors are `path.weight` and, if it has one, `path.bias`.
            norm: path of the batch norm that follows; "" for none.
            stride: in pixels.
            padding: pixels added on each side, or before and after along each side; None for TensorFlow's rule "SAME".
            dilation: distance in pixels of neighbouring weights.
            groups: that the channels are divided into.

        Raises:
            NodesError: the norm is no batch norm with running statistics.
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
        """Append a linear layer on (N, C), with a batch norm folded into it; arguments as for `convolution`."""
        return self.node("Gemm", x, *self._weights(path, norm), transB=1)

    def activation(self, x: str, activation: Activation | None) -> str:
        """Append an activation: "relu", "relu6", "hard_swish", or None for none."""
        if activation is None:
            return x
        if activation == "relu6":
            return self.node("Clip", x, self.constant(0.0, "zero"), self.constant(6.0, "six"))
        return self.node({"relu": "Relu", "hard_swish": "HardSwish"}[activation], x)

    def size_of(self, x: str) -> str:
        """Append the height and width of (N, C, H, W), as int64 (2,)."""
        return self.node("Shape", x, start=2, end=4)

    def resize(self, x: str, size: str, mode: str = "linear", coordinates: str = "") -> str:
        """Append a resizing of (N, C, H, W) to a size (height, width), as `torch.nn.functional.interpolate` does it.

        Args:
            x: the input.
            size: int64 (2,), such as `size_of` returns.
            mode: "linear" (bilinear, with `align_corners=False`) or "nearest".
            coordinates: ONNX's name of how pixels are placed, where it is not as PyTorch does it.
        """
        usual = {"linear": "half_pixel", "nearest": "asymmetric"}[mode]
        attributes = {"coordinate_transformation_mode": coordinates or usual}
        # ONNX Runtime 1.32 reorders the sizes as those of four axes where it moves channels last, whatever `axes` says.
        sizes = self.node("Concat", self.node("Shape", x, start=0, end=2), size, axis=0)
        return self.node("Resize", x, "", "", sizes, mode=mode, nearest_mode="floor", **attributes)

    def _weights(self, path: str, norm: str) -> list[str]:
        """Store the weight of a layer and its bias, if there is one, a norm folded into both; return their names."""
        weight = self.tensor(f"{path}.weight")
        bias = self.tensor(f"{path}.bias") if self.has(f"{path}.bias") else None
        # Those of a fused network are folded already.
        if norm and any(self.has(f"{norm}.{kind}") for kind in STATISTICS):
            weight, bias = self._fold(weight, bias, norm)
        names = [self.constant(weight, self._stored(f"{path}.weight"))]
        return names if bias is None else [*names, self.constant(bias, self._stored(f"{path}.bias"))]

    def _stored(self, name: str) -> str:
        """Return the name of a tensor in the network's file, which differs for one of several heads."""
        return self.head + name.removeprefix("head.") if name.startswith("head.") else name

    def _fold(self, weight: Array, bias: Array | None, norm: str) -> tuple[Array, Array]:
        missing = [kind for kind in STATISTICS if not self.has(f"{norm}.{kind}")]
        if missing:
            raise NodesError(f"{norm} is no batch norm with running statistics: it has no {missing[0]}")
        gamma, beta, mean, variance = (self.tensor(f"{norm}.{kind}").astype(np.float64) for kind in STATISTICS)
        scale = gamma / np.sqrt(variance + self._eps(norm))
        shift = beta - mean * scale + (0 if bias is None else bias * scale)
        return weight * scale.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1)), shift

    def _eps(self, norm: str) -> float:
        part = self.head.removesuffix(".") if norm.startswith("head.") else "backbone"
        eps = self.norm_eps.get(self._stored(norm), self.norm_eps.get(part))
        if eps is None:
            raise NodesError(f"the epsilon of the {part}'s batch norms is not known")
        return eps
