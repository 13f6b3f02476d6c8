"""Layers as data: the building blocks of rows, with their costs.

A layer computes its parameters, its multiply-adds and its output size, and names the module to build as an import
string. Multiply-adds follow the convention of the papers: convolutions and linear layers, including the two of
squeeze-excite. Bias, norm, activation and pooling are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from featuretap.support.errors import SpecError

Activation = str
"""Name of an activation: "relu", "relu6" or "hard_swish"."""

ACTIVATIONS = (None, "relu", "relu6", "hard_swish")
"""Activations that may follow a convolution; None for a linear layer."""


SYMMETRIC, SAME = "symmetric", "same"
PADDINGS = (SYMMETRIC, SAME)
"""Padding of convolutions: the same number of pixels on every side, or TensorFlow's rule "SAME".

Both divide sizes by the stride and round up. They differ in strided convolutions: TensorFlow adds only as many pixels
as the input size requires, and adds an odd pixel at the bottom and right.
"""


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round `channels` to a multiple of `divisor`, but not below 90 % of `channels`.

    This is the rounding of all MobileNets (TF-slim, `research/slim/nets/mobilenet/conv_blocks.py`).

    Args:
        channels: number of channels, possibly fractional.
        divisor: the result is a multiple of it.

    Returns:
        A multiple of `divisor`, at least `divisor`.

    Examples:
        >>> from featuretap.registry.specs import make_divisible
        >>> make_divisible(16 * 0.75), make_divisible(24 * 0.35), make_divisible(3)
        (16, 8, 8)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class Counted(Protocol):
    """Protocol of a layer that can be counted.

    Examples:
        >>> from featuretap.registry.specs import Counted, Linear
        >>> def total(layers: list[Counted]) -> int:
        ...     return sum(layer.parameters for layer in layers)
        >>> total([Linear("hidden", 576, 1024), Linear("logits", 1024, 10)])
        601098
    """

    @property
    def name(self) -> str:
        """Name of the submodule in its block."""

    @property
    def parameters(self) -> int:
        """Number of parameters, without the norm's."""

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-adds for an input of `height` × `width` pixels."""


class Layer(Counted, Protocol):
    """Protocol of a layer in a row: everything that counting, taps and building require.

    `module` is the import string of `module(layer, norm) -> nn.Module`.

    A class may also define `nodes`, the import string of `nodes(graph, layer, path, x) -> str`. The function appends
    the layer to a `featuretap.specs.graph.Graph`: `path` is the prefix of its tensors, `x` the name of its input, and
    the return value the name of its output. Without `nodes`, PyTorch traces the model for export.

    A class may also define `workspace`: the number of values that the layer keeps in memory in addition to its input
    and output; 0 by default.

    At most one layer of a row is `strided`. It receives the row's stride and dilation. Every `Convolution` wider than
    1×1 also receives the dilation. A layer with a field `padding` receives the padding of the backbone; a strided layer
    needs the field to support `padding="same"`.

    Examples:
        >>> from featuretap.registry.specs import Convolution, Layer
        >>> layer: Layer = Convolution("conv", in_channels=3, out_channels=16, kernel=3, strided=True)
        >>> layer.strided, layer.out_channels, layer.norm_channels
        (True, 16, 16)
    """

    module: ClassVar[str]

    @property
    def strided(self) -> bool:
        """Whether the layer receives the stride of its row, and its dilation."""

    @property
    def out_channels(self) -> int:
        """Channels of the output."""

    @property
    def norm_channels(self) -> int:
        """Channels of the norm, or 0 without a norm."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the output for an input of `height` × `width` pixels."""


@dataclass(frozen=True)
class Convolution:
    """A convolution without bias, followed by a norm and an optional activation.

    Args:
        name: name of the submodule in its block.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: height and width of the kernel in pixels.
        groups: number of groups that the channels are divided into; `in_channels` for a depthwise convolution.
        activation: "relu", "relu6", "hard_swish", or None.
        strided: whether the layer receives the stride of its row.
        stride: stride in pixels. Set when the row is placed in the network.
        dilation: distance between neighboring weights in pixels. Set when the row is placed in the network.
        padding: "symmetric", or "same" for TensorFlow's rule. Set when the row is placed in the network.

    Raises:
        SpecError: a size is not a positive integer, or activation or padding is unknown.

    Examples:
        >>> from featuretap.registry.specs import Convolution
        >>> stem = Convolution("conv", in_channels=3, out_channels=16, kernel=3, activation="hard_swish", stride=2)
        >>> stem.output_size(224, 224), stem.parameters, stem.macs(224, 224)
        ((112, 112), 432, 5419008)
        >>> stem.tensors
        {'conv.weight': (16, 3, 3, 3)}
    """

    module: ClassVar[str] = "featuretap.backbones.modules:ConvolutionLayer"
    nodes: ClassVar[str] = "featuretap.backbones.nodes:convolution_nodes"

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    groups: int = 1
    activation: Activation | None = None
    strided: bool = False
    stride: int = 1
    dilation: int = 1
    padding: str = SYMMETRIC

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.out_channels, self.kernel, self.groups)
        if {*map(type, sizes)} != {int} or min(sizes) < 1 or self.activation not in ACTIVATIONS:
            raise SpecError(
                f"convolution {self.name!r} is invalid: in_channels={self.in_channels!r}, "
                f"out_channels={self.out_channels!r}, kernel={self.kernel!r}, groups={self.groups!r}, "
                f"activation={self.activation!r}; sizes must be positive integers, and activation one of "
                f"{', '.join(map(repr, ACTIVATIONS))}"
            )
        if self.padding not in PADDINGS:
            raise SpecError(
                f"convolution {self.name!r} cannot take padding={self.padding!r}; it must be "
                f"{' or '.join(map(repr, PADDINGS))}"
            )

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Mapping from tensor name to shape, without the norm's tensors, which are named `norm.…`."""
        return {"conv.weight": (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)}

    @property
    def reach(self) -> int:
        """Distance from the first to the last weight in pixels, both included, in one dimension."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def pads(self) -> tuple[int, int] | None:
        """Pixels added (before, after) in each dimension; None if they depend on the size of the input."""
        if self.padding == SYMMETRIC:
            # With an odd kernel, the output size is the input size divided by the stride, rounded up.
            pixels = (self.kernel - 1) // 2 * self.dilation
            return pixels, pixels
        if self.stride > 1 and self.reach > 1:
            return None
        return (self.reach - 1) // 2, self.reach // 2

    @property
    def parameters(self) -> int:
        """Number of weights of the convolution, without the norm's parameters."""
        return self.kernel**2 * self.in_channels // self.groups * self.out_channels

    @property
    def norm_channels(self) -> int:
        """Channels of the norm that follows."""
        return self.out_channels

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the output for an input of `height` × `width` pixels."""
        stride = self.stride
        extra = stride - 1
        if self.padding == SYMMETRIC and self.kernel % 2 == 0:
            # Padding of an even kernel is one weight short of rounding up.
            extra -= self.dilation
        return (height + extra) // stride, (width + extra) // stride

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-adds for an input of `height` × `width` pixels."""
        out_height, out_width = self.output_size(height, width)
        return self.parameters * out_height * out_width


@dataclass(frozen=True)
class SqueezeExcite:
    """A squeeze-excite layer (arXiv 1709.01507): global pooling, two 1×1 convolutions, and a gate on the input.

    Args:
        name: name of the submodule in its block.
        channels: channels of input and output.
        squeeze: channels between the two convolutions.
        gate_slope: slope of the gate `clip(gate_slope * x + 0.5, 0, 1)`: 1/6 in MobileNetV3 (arXiv 1905.02244, section
            5.2), 0.2 in PaddleClas.

    Examples:
        >>> from featuretap.registry.specs import SqueezeExcite
        >>> gate = SqueezeExcite("squeeze_excite", channels=72, squeeze=24)
        >>> gate.parameters, gate.macs(28, 28)
        (3552, 3456)
    """

    module: ClassVar[str] = "featuretap.backbones.modules:SqueezeExciteLayer"
    nodes: ClassVar[str] = "featuretap.backbones.nodes:squeeze_excite_nodes"
    strided: ClassVar[bool] = False
    norm_channels: ClassVar[int] = 0

    name: str
    channels: int
    squeeze: int
    gate_slope: float = 1 / 6

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Mapping from tensor name to shape."""
        return {
            "reduce.weight": (self.squeeze, self.channels, 1, 1),
            "reduce.bias": (self.squeeze,),
            "expand.weight": (self.channels, self.squeeze, 1, 1),
            "expand.bias": (self.channels,),
        }

    @property
    def out_channels(self) -> int:
        """Channels of the output, equal to those of the input."""
        return self.channels

    @property
    def workspace(self) -> int:
        """Number of values in memory in addition to input and output: the gate."""
        return self.channels

    @property
    def parameters(self) -> int:
        """Number of weights and biases of both convolutions."""
        return 2 * self.channels * self.squeeze + self.channels + self.squeeze

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return `height` and `width` unchanged."""
        return height, width

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-adds of the two convolutions, which do not depend on `height` and `width`."""
        return 2 * self.channels * self.squeeze


@dataclass(frozen=True)
class Linear:
    """A linear layer on a pooled vector (N, in_channels).

    Args:
        name: name of the submodule in the head.
        in_channels: channels of the input.
        out_channels: channels of the output.
        bias: whether the layer has a bias.

    Examples:
        >>> from featuretap.registry.specs import Linear
        >>> Linear("logits", 1280, 10).tensors
        {'weight': (10, 1280), 'bias': (10,)}
    """

    name: str
    in_channels: int
    out_channels: int
    bias: bool = True

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Mapping from tensor name to shape."""
        tensors: dict[str, tuple[int, ...]] = {"weight": (self.out_channels, self.in_channels)}
        return {**tensors, "bias": (self.out_channels,)} if self.bias else tensors

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return (self.in_channels + self.bias) * self.out_channels

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-adds, which do not depend on `height` and `width`."""
        return self.in_channels * self.out_channels


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm on a pooled vector (N, channels).

    Args:
        name: name of the submodule in the head.
        channels: channels of input and output.

    Examples:
        >>> from featuretap.registry.specs import BatchNorm
        >>> norm = BatchNorm("norm", 1280)
        >>> norm.parameters, norm.macs(7, 7)
        (2560, 0)
    """

    name: str
    channels: int

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Mapping from tensor name to shape."""
        elements = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (self.channels,))
        return {**elements, "num_batches_tracked": ()}

    @property
    def parameters(self) -> int:
        """Number of parameters: gamma and beta."""
        return 2 * self.channels

    def macs(self, height: int, width: int) -> int:
        """Return 0 for any `height` and `width`: the papers do not count norms."""
        return 0
