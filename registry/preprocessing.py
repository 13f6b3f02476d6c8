"""Preprocessing as data: how images were prepared when a set of weights was trained. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Literal

from featuretap.registry.errors import OptionError

__all__ = ["Preprocessing"]

INTERPOLATIONS = ("bilinear", "bicubic")
LARGEST_SIZE = 65_536
LARGEST = 1e6
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

    Raises:
        OptionError: sizes that are no positive whole numbers, deviations that are not positive, other numbers of means
            than of deviations, or an unknown interpolation.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if type(size) is not int or not 0 < size <= LARGEST_SIZE:
                raise OptionError(f"preprocessing cannot have {name}={size!r}; it is a number of pixels")
        for name, least in (("mean", -LARGEST), ("std", 0.0)):
            values = getattr(self, name)
            if not values or not all(type(v) in (int, float) and least < v < LARGEST for v in values):
                raise OptionError(f"preprocessing cannot have {name}={values!r}; it is a number for each channel")
        if len(self.mean) != len(self.std):
            raise OptionError(
                f"preprocessing has {len(self.mean)} means and {len(self.std)} deviations; give both alike"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise OptionError(
                f"preprocessing cannot have interpolation={self.interpolation!r}; it is {' or '.join(INTERPOLATIONS)}"
            )

    def for_channels(self, channels: int) -> Preprocessing:
        """Return it for images of another number of channels: averaged for one, repeated for more than given."""
        if channels == len(self.mean):
            return self
        if channels == 1:
            return replace(self, mean=(sum(self.mean) / len(self.mean),), std=(sum(self.std) / len(self.std),))
        return replace(
            self, mean=tuple(islice(cycle(self.mean), channels)), std=tuple(islice(cycle(self.std), channels))
        )
