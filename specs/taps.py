"""A tap: what one feature map is, before it exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from featuretap.support.errors import SpecError


@dataclass(frozen=True)
class Tap:
    """Channels and stride of a feature map (N, channels, ceil(H / stride), ceil(W / stride)).

    Args:
        channels: of the map.
        stride: height and width of the image, divided by the map's.
        rounding: convolutions that pad round sizes up, "ceil"; patchifying stems that drop the rest declare "floor".
            Where layers of both kinds follow one another, as in DenseNet, it is the number of pixels that are added to
            an image's size before what is left over of the division by the stride is dropped: 0 for "floor",
            stride − 1 for "ceil".

    Raises:
        SpecError: channels or a stride that are not positive, or another rounding.
    """

    channels: int
    stride: int
    rounding: Literal["ceil", "floor"] | int = "ceil"

    def __post_init__(self) -> None:
        known = self.rounding in ("ceil", "floor") or self.rounding in range(self.stride)
        if self.channels < 1 or self.stride < 1 or not known:
            raise SpecError(
                f"no tap has channels={self.channels!r}, stride={self.stride!r}, rounding={self.rounding!r}; "
                "channels and stride are positive, rounding is 'ceil', 'floor' or a number of pixels below the stride"
            )

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the map for an image of `height` × `width` pixels."""
        up = self.stride - 1 if self.rounding == "ceil" else 0 if self.rounding == "floor" else self.rounding
        return self.channels, (height + up) // self.stride, (width + up) // self.stride
