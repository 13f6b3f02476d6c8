"""Rows: the lines of a backbone's table, each of which lists its layers.

The following expands one row, the first `Bneck` of stage C3 of MobileNetV3-Large. For a 224×224 image, it reads the map
of C2, (N, 24, 56, 56). The row lists its layers, its place in the table determines path and stride, and each layer
becomes a module at that path.

    >>> from featuretap.backbones.mobilenet_v3 import LARGE
    >>> LARGE.stages[2][0]
    Bneck(kernel=5, expanded=72, out=40, activation='relu', squeeze_excite=True)
    >>> block = next(block for block in LARGE.blocks if block.path == "stages.C3.0")
    >>> size = 56, 56
    >>> for path, layer in block.layer_paths():
    ...     size = layer.output_size(*size)
    ...     print(path, ("N", layer.out_channels, *size), layer.parameters)
    stages.C3.0.expand ('N', 72, 56, 56) 1728
    stages.C3.0.depthwise ('N', 72, 28, 28) 1800
    stages.C3.0.squeeze_excite ('N', 72, 28, 28) 3552
    stages.C3.0.project ('N', 40, 28, 28) 2880

    >>> import torch
    >>> from featuretap import registry
    >>> backbone = registry.build(LARGE, features_only=True)
    >>> feature = torch.zeros(2, 24, 56, 56)
    >>> for name, module in backbone.get_submodule(block.path).named_children():
    ...     feature = module(feature)
    ...     print(name, tuple(feature.shape), *(type(child).__name__ for child in module.children()))
    expand (2, 72, 56, 56) Conv2d BatchNorm2d ReLU
    depthwise (2, 72, 28, 28) Conv2d BatchNorm2d ReLU
    squeeze_excite (2, 72, 28, 28) Conv2d ReLU Conv2d Hardsigmoid
    project (2, 40, 28, 28) Conv2d BatchNorm2d

To add a new kind of block, write a class with the members of `Row`. Counts, taps and modules follow from its layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

from featuretap.specs.layers import Activation, Convolution, Layer, SqueezeExcite, make_divisible

RE: Activation = "relu"
RE6: Activation = "relu6"
HS: Activation = "hard_swish"
SE = True
"""Value of `Bneck.squeeze_excite` in tables, named like the column in the MobileNetV3 paper."""


class Row(Protocol):
    """Protocol of a row. A row defines neither its stride nor its input channels: its place in the table does.

    If `shortcut` is True, the input is added to the output wherever the stride is 1 and the channels match. The tap
    address `Cn.expansion` refers to a layer named `expand`, and `Cn.depthwise` to a layer named `depthwise`.

    Examples:
        >>> from dataclasses import dataclass, replace
        >>> from featuretap.registry.specs import BackboneSpec, Convolution, make_divisible
        >>> @dataclass(frozen=True)
        ... class Plain:
        ...     out: int
        ...     shortcut = True
        ...
        ...     def layers(self, in_channels):
        ...         return (Convolution("conv", in_channels, self.out, 3, activation="relu", strided=True),)
        ...
        ...     def widened(self, width, in_channels, widened_in_channels):
        ...         return replace(self, out=make_divisible(self.out * width))
        ...
        ...     def halved(self, *, expansion):
        ...         return replace(self, out=self.out // 2)
        >>> BackboneSpec("plain", stages=((Plain(16),), (Plain(32), Plain(32)))).parameters
        14416
    """

    @property
    def shortcut(self) -> bool:
        """Whether the input is added to the output, where stride and channels allow it."""

    def layers(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the layers for an input with `in_channels` channels, in execution order. One must be `strided`."""

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return the row scaled by a width multiplier.

        Args:
            width: the width multiplier.
            in_channels: channels of the row's input before scaling.
            widened_in_channels: channels of the row's input after scaling.

        Returns:
            The scaled row.
        """

    def halved(self, *, expansion: bool) -> Self:
        """Return the row with half the output channels and, if `expansion` is True, half the expanded channels."""


@dataclass(frozen=True)
class Conv:
    """A convolution with norm and activation, such as a stem or a final 1×1 convolution.

    Args:
        kernel: height and width of the kernel in pixels.
        out: output channels.
        activation: RE, RE6, HS, or None.
        narrowest: minimum width multiplier applied to this row. It is 1 for the last convolution of MobileNetV2, which
            keeps 1280 channels in narrower models (arXiv 1801.04381, section 4).

    Examples:
        >>> from featuretap.registry.specs import HS, Conv
        >>> Conv(3, 16, HS).layers(in_channels=3)[0].parameters
        432
        >>> Conv(1, 1280, HS, narrowest=1.0).widened(0.5, 320, 160).out
        1280
    """

    shortcut: ClassVar[bool] = False

    kernel: int
    out: int
    activation: Activation
    narrowest: float = 0.0

    def layers(self, in_channels: int) -> tuple[Layer, ...]:
        """Return one convolution for an input with `in_channels` channels."""
        return (Convolution("conv", in_channels, self.out, self.kernel, 1, self.activation, strided=True),)

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return the row with channels scaled by `width` and rounded."""
        return replace(self, out=make_divisible(self.out * max(width, self.narrowest)))

    def halved(self, *, expansion: bool) -> Self:
        """Return the row with half the channels."""
        return replace(self, out=self.out // 2)


@dataclass(frozen=True)
class Separable:
    """MobileNetV1's block: a depthwise 3×3 and a 1×1 convolution, each with norm and activation.

    Source: arXiv 1704.04861, section 3.1.

    Args:
        out: output channels.
        activation: activation after each convolution: RE, RE6, HS, or None.

    Examples:
        >>> from featuretap.registry.specs import RE6, Separable
        >>> [(layer.name, layer.parameters) for layer in Separable(64, RE6).layers(in_channels=32)]
        [('depthwise', 288), ('pointwise', 2048)]
    """

    shortcut: ClassVar[bool] = False

    out: int
    activation: Activation

    def layers(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the depthwise and the pointwise convolution for an input with `in_channels` channels."""
        return (
            Convolution("depthwise", in_channels, in_channels, 3, in_channels, self.activation, strided=True),
            Convolution("pointwise", in_channels, self.out, activation=self.activation),
        )

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return the row with channels scaled by `width` and rounded."""
        return replace(self, out=make_divisible(self.out * width))

    def halved(self, *, expansion: bool) -> Self:
        """Return the row with half the output channels."""
        return replace(self, out=self.out // 2)


@dataclass(frozen=True)
class Bneck:
    """The inverted residual of MobileNetV2 and V3: expansion, depthwise convolution, squeeze-excite, projection.

    The projection is linear. A block whose `expanded` equals its input channels has no expansion layer. Source: arXiv
    1801.04381, sections 3.2 and 3.3, and arXiv 1905.02244, section 5.3; tables 1 and 2 of the latter have these
    columns.

    Args:
        kernel: height and width of the depthwise kernel in pixels.
        expanded: channels of the expansion and the depthwise convolution.
        out: output channels.
        activation: activation after the expansion and the depthwise convolution: RE, RE6, HS, or None.
        squeeze_excite: whether the block has a squeeze-excite layer; `SE` in tables.

    Examples:
        >>> from featuretap.registry.specs import RE, SE, Bneck
        >>> row = Bneck(5, 72, 40, RE, SE)
        >>> [layer.name for layer in row.layers(in_channels=24)]
        ['expand', 'depthwise', 'squeeze_excite', 'project']
        >>> row.halved(expansion=False)
        Bneck(kernel=5, expanded=72, out=20, activation='relu', squeeze_excite=True)
    """

    shortcut: ClassVar[bool] = True

    kernel: int
    expanded: int
    out: int
    activation: Activation
    squeeze_excite: bool = False

    def layers(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the two to four layers for an input with `in_channels` channels."""
        return (
            *self.expansion(in_channels),
            Convolution(
                "depthwise", self.expanded, self.expanded, self.kernel, self.expanded, self.activation, strided=True
            ),
            *self.gate(),
            Convolution("project", self.expanded, self.out),
        )

    def expansion(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the expansion layer, or () if `expanded` equals `in_channels`."""
        if self.expanded == in_channels:
            return ()
        return (Convolution("expand", in_channels, self.expanded, activation=self.activation),)

    def gate(self) -> tuple[Layer, ...]:
        """Return the squeeze-excite layer, or () without one.

        It squeezes to a quarter of the channels, rounded (MobileNetV3, section 5.3).
        """
        if not self.squeeze_excite:
            return ()
        return (SqueezeExcite("squeeze_excite", self.expanded, make_divisible(self.expanded // 4)),)

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return the row with output channels scaled by `width`, and the same ratio of expanded to input channels."""
        return replace(
            self,
            expanded=make_divisible(widened_in_channels * self.expanded / in_channels),
            out=make_divisible(self.out * width),
        )

    def halved(self, *, expansion: bool) -> Self:
        """Return the row with half the output channels and, if `expansion` is True, half the expanded channels."""
        return replace(self, expanded=self.expanded // 2 if expansion else self.expanded, out=self.out // 2)
