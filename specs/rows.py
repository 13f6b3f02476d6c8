"""Rows: the lines of a backbone's table, each of which lists the layers that it is made of.

One row expanded: the first `Bneck` of stage C3 of MobileNetV3-Large reads C2's map, (N, 24, 56, 56) for a 224×224
image. The row lists layers, its place in the table gives it a path and a stride, and each layer becomes a module there.

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

A plugin adds a new kind of block by writing a class with the members of `Row`; counts, taps and modules follow from the
layers that it returns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

from featuretap.specs.layers import Activation, Convolution, Layer, SqueezeExcite, make_divisible

RE: Activation = "relu"
RE6: Activation = "relu6"
HS: Activation = "hard_swish"
SE = True
"""Last column of a bottleneck's row: with squeeze-excite, as in the tables of the MobileNetV3 paper."""


class Row(Protocol):
    """One line of a table. It states neither its stride nor its input channels: its place in the table does.

    `shortcut` says whether the input is added to the output where stride is 1 and the channels match. A layer named
    `expand` is what the tap address `Cn.expansion` finds, and one named `depthwise` is found by `Cn.depthwise`.
    """

    @property
    def shortcut(self) -> bool:
        """Whether the input is added to the output where that is possible."""

    def layers(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the layers for an input of `in_channels` in order of execution, one of them marked `strided`."""

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return this row at a multiplier `width`; its input had `in_channels` and now has `widened_in_channels`."""

    def halved(self, *, expansion: bool) -> Self:
        """Return this row with half the output channels and, where `expansion`, half the expanded channels."""


@dataclass(frozen=True)
class Conv:
    """A convolution with norm and activation: a stem, or a last 1×1 convolution.

    Args:
        kernel: its height and width in pixels.
        out: output channels.
        activation: RE, RE6, HS, or None.
        narrowest: width multipliers below do not apply to it (MobileNetV2's last convolution stays at 1280: arXiv
            1801.04381, section 4).
    """

    shortcut: ClassVar[bool] = False

    kernel: int
    out: int
    activation: Activation
    narrowest: float = 0.0

    def layers(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the one layer."""
        return (Convolution("conv", in_channels, self.out, self.kernel, 1, self.activation, strided=True),)

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return it with scaled and rounded channels."""
        return replace(self, out=make_divisible(self.out * max(width, self.narrowest)))

    def halved(self, *, expansion: bool) -> Self:
        """Return it with half the channels."""
        return replace(self, out=self.out // 2)


@dataclass(frozen=True)
class Separable:
    """MobileNetV1's block: a depthwise 3×3 and a 1×1 convolution, each with norm and activation.

    Source: arXiv 1704.04861, section 3.1.

    Args:
        out: output channels.
        activation: behind each of the two: RE, RE6, HS, or None.
    """

    shortcut: ClassVar[bool] = False

    out: int
    activation: Activation

    def layers(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the depthwise and the pointwise layer."""
        return (
            Convolution("depthwise", in_channels, in_channels, 3, in_channels, self.activation, strided=True),
            Convolution("pointwise", in_channels, self.out, activation=self.activation),
        )

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return it with scaled and rounded channels."""
        return replace(self, out=make_divisible(self.out * width))

    def halved(self, *, expansion: bool) -> Self:
        """Return it with half the output channels; it has no expansion."""
        return replace(self, out=self.out // 2)


@dataclass(frozen=True)
class Bneck:
    """The inverted residual of MobileNetV2 and V3: expand, depthwise, gate, project.

    A block whose expansion equals its input has no expansion layer; the projection is linear. Source: arXiv 1801.04381,
    sections 3.2 and 3.3, and arXiv 1905.02244, section 5.3; its tables 1 and 2 have these columns.

    Args:
        kernel: height and width of the depthwise convolution in pixels.
        expanded: channels of the expansion and of the depthwise convolution.
        out: output channels.
        activation: behind the expansion and the depthwise convolution: RE, RE6, HS, or None.
        squeeze_excite: whether it has a gate; `SE` in the tables.
    """

    shortcut: ClassVar[bool] = True

    kernel: int
    expanded: int
    out: int
    activation: Activation
    squeeze_excite: bool = False

    def layers(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the two to four layers."""
        return (
            *self.expansion(in_channels),
            Convolution(
                "depthwise", self.expanded, self.expanded, self.kernel, self.expanded, self.activation, strided=True
            ),
            *self.gate(),
            Convolution("project", self.expanded, self.out),
        )

    def expansion(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the expansion layer, or nothing where it would not expand an input of `in_channels`."""
        if self.expanded == in_channels:
            return ()
        return (Convolution("expand", in_channels, self.expanded, activation=self.activation),)

    def gate(self) -> tuple[Layer, ...]:
        """Return the squeeze-excite layer, if the row has one; a quarter of the channels, rounded (V3 section 5.3)."""
        if not self.squeeze_excite:
            return ()
        return (SqueezeExcite("squeeze_excite", self.expanded, make_divisible(self.expanded // 4)),)

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return it with scaled output channels, and expanded ones in the same ratio to the input as before."""
        return replace(
            self,
            expanded=make_divisible(widened_in_channels * self.expanded / in_channels),
            out=make_divisible(self.out * width),
        )

    def halved(self, *, expansion: bool) -> Self:
        """Return it with half the output channels and, where asked, half the expanded ones."""
        return replace(self, expanded=self.expanded // 2 if expansion else self.expanded, out=self.out // 2)
