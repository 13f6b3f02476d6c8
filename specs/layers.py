"""Layers as data: what a row of a table is made of, and what each costs.

Every layer knows its parameters, its multiply-adds at an input size, the size of its output, and the module that it
becomes (as a string, resolved when a model is built). Multiply-adds follow the convention of the papers: those of
convolutions and linear layers, squeeze-excite's two included; bias, norm, activation and pooling are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from featuretap.support.errors import SpecError

Activation = str
"""Name of an activation: "relu", "relu6" or "hard_swish"."""

ACTIVATIONS = (None, "relu", "relu6", "hard_swish")
"""What may follow a convolution; None where it is linear."""


SYMMETRIC, SAME = "symmetric", "same"
PADDINGS = (SYMMETRIC, SAME)
"""How convolutions pad: by as many pixels on every side, or by TensorFlow's rule "SAME".

Either way, sizes are divided by the stride and rounded up. They differ in strided convolutions: TensorFlow adds only
the pixels that are missing for the input's size, and the odd one at the bottom and the right.
"""


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round a number of `channels` to a multiple of `divisor`, and up again if that lost more than a tenth.

    The rounding of all MobileNet papers' code (TF-slim, `research/slim/nets/mobilenet/conv_blocks.py`).
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class Counted(Protocol):
    """A layer as far as counting goes: parameters, and multiply-adds for an input of `height` × `width` pixels."""

    @property
    def name(self) -> str:
        """Name of its submodule in the block."""

    @property
    def parameters(self) -> int:
        """Parameters, its norm's left out."""

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-adds for an input of `height` × `width` pixels."""


class Layer(Counted, Protocol):
    """A layer of a row: what counting, taps and building need to know of it.

    `module` is the import string of `module(layer, norm) -> nn.Module`. A class may also have `nodes`, the import
    string of `nodes(graph, layer, path, x) -> str`, which appends the layer to a `featuretap.specs.graph.Graph`: `path`
    is that of its tensors, `x` the name of its input, and it returns the name of its output. Without it, PyTorch traces
    the network where it is exported. A class may also have `workspace`: the number of values inside the layer that are
    in memory together with its input and its output, 0 by default.

    `strided` marks the layer that carries the stride of its row; at most one in a row does. It also carries the row's
    dilation, as does every `Convolution` wider than 1×1. A layer with a field `padding` is given that of the backbone;
    one that strides needs the field for `padding="same"`. `norm_channels` are those of its norm, 0 without one.
    """

    module: ClassVar[str]

    @property
    def strided(self) -> bool:
        """Whether it carries the row's stride, and its dilation whatever its kind."""

    @property
    def out_channels(self) -> int:
        """Channels of its output."""

    @property
    def norm_channels(self) -> int:
        """Channels of its norm, 0 without one."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output for an input of `height` × `width` pixels."""


@dataclass(frozen=True)
class Convolution:
    """A convolution without bias, a norm, and an activation unless it is linear.

    Args:
        name: of its submodule in the block.
        in_channels: of its input.
        out_channels: of its output.
        kernel: height and width in pixels.
        groups: that channels are divided into; as many as `in_channels` where it is depthwise.
        activation: "relu", "relu6", "hard_swish", or None.
        strided: whether it carries the stride of its row.
        stride: set where its row is put in its place, as is the dilation.
        dilation: distance in pixels of neighbouring weights.
        padding: "symmetric", or "same" for TensorFlow's rule; also set where its row is put in its place.

    Raises:
        SpecError: sizes that are no positive whole numbers, or another activation or padding.
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
                f"no convolution {self.name!r} has in_channels={self.in_channels!r}, "
                f"out_channels={self.out_channels!r}, kernel={self.kernel!r}, groups={self.groups!r}, "
                f"activation={self.activation!r}; sizes are positive whole numbers, and the activation is one of "
                f"{', '.join(map(repr, ACTIVATIONS))}"
            )
        if self.padding not in PADDINGS:
            raise SpecError(
                f"no convolution {self.name!r} has padding={self.padding!r}; it is {' or '.join(map(repr, PADDINGS))}"
            )

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name below its path → shape; the norm's are named `norm.…` and have `norm_channels` elements."""
        return {"conv.weight": (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)}

    @property
    def reach(self) -> int:
        """Distance in pixels from the first to the last weight, both included, along one side."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def pads(self) -> tuple[int, int] | None:
        """Pixels added before and after, along each side; None if they depend on the size of the input."""
        if self.padding == SYMMETRIC:
            # With an odd kernel, sizes are divided by the stride and rounded up.
            pixels = (self.kernel - 1) // 2 * self.dilation
            return pixels, pixels
        if self.stride > 1 and self.reach > 1:
            return None
        return (self.reach - 1) // 2, self.reach // 2

    @property
    def parameters(self) -> int:
        """Weights of the convolution; the norm's are `norm_channels` times two, or what a `norm=` option brings."""
        return self.kernel**2 * self.in_channels // self.groups * self.out_channels

    @property
    def norm_channels(self) -> int:
        """Channels of the norm that follows."""
        return self.out_channels

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of `height` × `width` pixels."""
        stride = self.stride
        more = stride - 1
        if self.padding == SYMMETRIC and self.kernel % 2 == 0:
            # An even kernel is padded by one weight less than the map's size would take.
            more -= self.dilation
        return (height + more) // stride, (width + more) // stride

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds for an input of `height` × `width` pixels."""
        out_height, out_width = self.output_size(height, width)
        return self.parameters * out_height * out_width


@dataclass(frozen=True)
class SqueezeExcite:
    """Global pooling, two 1×1 convolutions with bias, and a gate that multiplies the input (arXiv 1709.01507).

    Args:
        name: of its submodule in the block.
        channels: of input and output.
        squeeze: channels between the two convolutions.
        gate_slope: the gate is `clip(gate_slope * x + 0.5, 0, 1)`: MobileNetV3's slope is 1/6 (arXiv 1905.02244,
            section 5.2), PaddleClas's 0.2.
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
        """Name below its path → shape."""
        return {
            "reduce.weight": (self.squeeze, self.channels, 1, 1),
            "reduce.bias": (self.squeeze,),
            "expand.weight": (self.channels, self.squeeze, 1, 1),
            "expand.bias": (self.channels,),
        }

    @property
    def out_channels(self) -> int:
        """As many as come in."""
        return self.channels

    @property
    def workspace(self) -> int:
        """Values of the gate, which are in memory together with the input and the output."""
        return self.channels

    @property
    def parameters(self) -> int:
        """Weights and biases of both convolutions."""
        return 2 * self.channels * self.squeeze + self.channels + self.squeeze

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The input's size."""
        return height, width

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of the two convolutions, which see one pixel whatever the size."""
        return 2 * self.channels * self.squeeze


@dataclass(frozen=True)
class Linear:
    """A linear layer on a pooled vector (N, in_channels).

    Args:
        name: of its submodule in the head.
        in_channels: of its input.
        out_channels: of its output.
        bias: whether it has one.
    """

    name: str
    in_channels: int
    out_channels: int
    bias: bool = True

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name below its path → shape."""
        tensors: dict[str, tuple[int, ...]] = {"weight": (self.out_channels, self.in_channels)}
        return {**tensors, "bias": (self.out_channels,)} if self.bias else tensors

    @property
    def parameters(self) -> int:
        """Weights, and biases if there are any."""
        return (self.in_channels + self.bias) * self.out_channels

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds, the same whatever was pooled."""
        return self.in_channels * self.out_channels


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm on a pooled vector (N, channels).

    Args:
        name: of its submodule in the head.
        channels: of input and output.
    """

    name: str
    channels: int

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name below its path → shape."""
        elements = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (self.channels,))
        return {**elements, "num_batches_tracked": ()}

    @property
    def parameters(self) -> int:
        """Gamma and beta."""
        return 2 * self.channels

    def macs(self, height: int, width: int) -> int:
        """None: by the papers' convention a norm is not counted."""
        return 0
