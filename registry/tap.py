"""A tap: what one feature map is, before it exists. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from featuretap.registry.errors import SpecError

__all__ = ["Tap"]


@dataclass(frozen=True)
class Tap:
    """Channels and stride of a feature map (N, channels, ceil(H / stride), ceil(W / stride)).

    Convolutions that pad round sizes up; patchifying stems that drop the rest declare `rounding="floor"`.
    """

    channels: int
    stride: int
    rounding: Literal["ceil", "floor"] = "ceil"

    def __post_init__(self) -> None:
        if self.channels < 1 or self.stride < 1 or self.rounding not in ("ceil", "floor"):
            raise SpecError(
                f"no tap has channels={self.channels!r}, stride={self.stride!r}, rounding={self.rounding!r}; "
                "channels and stride are positive, rounding is 'ceil' or 'floor'"
            )

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the map for an image of `height` × `width` pixels."""
        up = self.stride - 1 if self.rounding == "ceil" else 0
        return self.channels, (height + up) // self.stride, (width + up) // self.stride
