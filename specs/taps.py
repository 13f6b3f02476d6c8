"""Taps: channels and stride of a feature map, known before the model is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from featuretap.support.errors import SpecError


@dataclass(frozen=True)
class Tap:
    """Channels and stride of a feature map (N, channels, ceil(H / stride), ceil(W / stride)).

    Args:
        channels: channels of the map.
        stride: height of the image divided by the height of the map.
        rounding: rounding of the map's size: "ceil" after padded convolutions, "floor" after patchify stems. If both
            kinds of layers follow each other, as in DenseNet, it is the number of pixels added to the size of the image
            before integer division by the stride: 0 is equivalent to "floor", stride - 1 to "ceil".

    Raises:
        SpecError: channels or stride is not positive, or the rounding is unknown.

    Examples:
        >>> from featuretap.registry.specs import Tap
        >>> Tap(channels=112, stride=16).shape(225, 320)
        (112, 15, 20)
        >>> Tap(channels=112, stride=16, rounding="floor").shape(225, 320)
        (112, 14, 20)
    """

    channels: int
    stride: int
    rounding: Literal["ceil", "floor"] | int = "ceil"

    def __post_init__(self) -> None:
        known = self.rounding in ("ceil", "floor") or self.rounding in range(self.stride)
        if self.channels < 1 or self.stride < 1 or not known:
            raise SpecError(
                f"a tap cannot have channels={self.channels!r}, stride={self.stride!r}, rounding={self.rounding!r}; "
                "channels and stride must be positive, and rounding 'ceil', 'floor' or a number of pixels below "
                "the stride"
            )

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the (channels, height, width) of the map for an image of `height` × `width` pixels."""
        up = self.stride - 1 if self.rounding == "ceil" else 0 if self.rounding == "floor" else self.rounding
        return self.channels, (height + up) // self.stride, (width + up) // self.stride
