"""The two blocks of MobileNetV4 (arXiv 2404.10518), as rows for featuretap's tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from featuretap.registry.specs import RE, Convolution, make_divisible

__all__ = ["UIB", "FusedIB"]


@dataclass(frozen=True)
class UIB:
    """Universal inverted bottleneck (the paper's section of that name).

    Both depthwise layers are optional. With both, the block is the paper's ExtraDW; with only the first, ConvNext;
    with only the second, an inverted bottleneck; with neither, a feed-forward network. The first depthwise layer and
    the projection are linear. The attributes are the columns of the paper's tables.

    Attributes:
        start: Kernel of the depthwise layer before the expansion, or 0 for no such layer.
        middle: Kernel of the depthwise layer after the expansion, or 0 for no such layer.
        expanded: Expanded channels.
        out: Output channels.
    """

    shortcut: ClassVar[bool] = True

    start: int
    middle: int
    expanded: int
    out: int

    def layers(self, in_channels: int) -> tuple[Convolution, ...]:
        """Return two to four layers; the last depthwise layer has stride 2, as in the reference code."""
        start = self._depthwise("start_depthwise", self.start, in_channels, strided=self.middle == 0)
        expand = Convolution(
            "expand", in_channels, self.expanded, activation=RE, strided=self.start == self.middle == 0
        )
        middle = self._depthwise("depthwise", self.middle, self.expanded, activation=RE, strided=True)
        return (*start, expand, *middle, Convolution("project", self.expanded, self.out))

    def _depthwise(
        self, name: str, kernel: int, channels: int, *, activation: str | None = None, strided: bool
    ) -> tuple[Convolution, ...]:
        if kernel == 0:
            return ()
        return (Convolution(name, channels, channels, kernel, channels, activation, strided),)

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return the row with scaled output channels and the same ratio of expanded to input channels."""
        return replace(
            self,
            expanded=make_divisible(widened_in_channels * self.expanded / in_channels),
            out=make_divisible(self.out * width),
        )

    def halved(self, *, expansion: bool) -> Self:
        """Return the row with half the output channels, and with `expansion` also half the expanded channels."""
        return replace(self, expanded=self.expanded // 2 if expansion else self.expanded, out=self.out // 2)


@dataclass(frozen=True)
class FusedIB:
    """Fused inverted bottleneck of the paper's tables: a full convolution expands, a linear 1×1 convolution projects.

    Attributes:
        kernel: Kernel of the expanding convolution.
        expanded: Expanded channels.
        out: Output channels.
    """

    shortcut: ClassVar[bool] = True

    kernel: int
    expanded: int
    out: int

    def layers(self, in_channels: int) -> tuple[Convolution, ...]:
        """Return the expanding and the projecting layer."""
        return (
            Convolution("expand", in_channels, self.expanded, self.kernel, activation=RE, strided=True),
            Convolution("project", self.expanded, self.out),
        )

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return the row with scaled output channels and the same ratio of expanded to input channels."""
        return replace(
            self,
            expanded=make_divisible(widened_in_channels * self.expanded / in_channels),
            out=make_divisible(self.out * width),
        )

    def halved(self, *, expansion: bool) -> Self:
        """Return the row with half the output channels, and with `expansion` also half the expanded channels."""
        return replace(self, expanded=self.expanded // 2 if expansion else self.expanded, out=self.out // 2)
