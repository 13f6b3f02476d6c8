"""Preprocessing as data: how images were prepared when a set of weights was trained. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Literal

__all__ = ["Preprocessing"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to 0…1, subtract the mean, divide by the deviation.

    Args:
        resize: pixels of the shorter side after resizing.
        crop: height and width in pixels of the crop.
        mean: per channel, of values from 0 to 1.
        std: per channel, of values from 0 to 1.
        interpolation: of the resizing.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def for_channels(self, channels: int) -> Preprocessing:
        """Return it for images of another number of channels: averaged for one, repeated for more than given."""
        if channels == len(self.mean):
            return self
        if channels == 1:
            return replace(self, mean=(sum(self.mean) / len(self.mean),), std=(sum(self.std) / len(self.std),))
        return replace(
            self, mean=tuple(islice(cycle(self.mean), channels)), std=tuple(islice(cycle(self.std), channels))
        )
