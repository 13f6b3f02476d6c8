"""The two blocks of MobileNetV4 (arXiv 2404.10518), as rows for featuretap's tables. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from featuretap.registry.specs import RE, Convolution, make_divisible

__all__ = ["UIB", "FusedIB"]


@dataclass(frozen=True)
class UIB:
    """The universal inverted bottleneck (the section of that name): both of its depthwise layers are optional.

    Columns are those of the paper's tables: kernel of the depthwise layer before the expansion, kernel of the one
    behind it (0: there is none), expanded channels, output channels. With both it is the paper's ExtraDW, with the
    first alone its ConvNext, with the second alone an inverted bottleneck, with neither a feed-forward network. The
    first depthwise layer and the projection are linear.
    """

    shortcut: ClassVar[bool] = True

    start: int
    middle: int
    expanded: int
    out: int

    def layers(self, in_channels: int) -> tuple[Convolution, ...]:
        """Return the two to four layers; the last depthwise one strides, as in the reference code."""
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
        """Return it with scaled output channels, and expanded ones in the same ratio to the input as before."""
        return replace(
            self,
            expanded=make_divisible(widened_in_channels * self.expanded / in_channels),
            out=make_divisible(self.out * width),
        )

    def halved(self, *, expansion: bool) -> Self:
        """Return it with half the output channels and, where asked, half the expanded ones."""
        return replace(self, expanded=self.expanded // 2 if expansion else self.expanded, out=self.out // 2)


@dataclass(frozen=True)
class FusedIB:
    """The fused inverted bottleneck of the paper's tables: a wide convolution expands, a linear 1×1 one projects.

    Columns are kernel, expanded channels, output channels.
    """

    shortcut: ClassVar[bool] = True

    kernel: int
    expanded: int
    out: int

    def layers(self, in_channels: int) -> tuple[Convolution, ...]:
        """Return the two layers."""
        return (
            Convolution("expand", in_channels, self.expanded, self.kernel, activation=RE, strided=True),
            Convolution("project", self.expanded, self.out),
        )

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
