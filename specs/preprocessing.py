"""Preprocessing as data: how images were prepared when weights were trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from typing import Any, Literal

from featuretap.specs.validation import BOOLEAN, MOST, Check, check_fields, is_list_of, is_number, is_whole
from featuretap.support.errors import OptionError

LARGEST_SIZE = 65_536
LARGEST = 1e6
SIZE: Check = ("None or a number of pixels", lambda value: value is None or is_whole(value, 1, LARGEST_SIZE))
FIELDS: dict[str, Check] = {
    "resize": SIZE,
    "crop": SIZE,
    "mean": ("a number for each channel", lambda values: is_list_of(values, _is_bounded, MOST)),
    "std": (
        "a positive number for each channel",
        lambda values: is_list_of(values, lambda v: _is_bounded(v) and v > 0, MOST),
    ),
    "interpolation": ("'bilinear' or 'bicubic'", lambda value: value in ("bilinear", "bicubic")),
    "inside": BOOLEAN,
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PICTURE_MODES = {1: "L", 3: "RGB"}
"""Mapping from number of channels to Pillow's image mode."""


def _is_bounded(value: Any) -> bool:
    return is_number(value, -LARGEST, LARGEST)


@dataclass(frozen=True)
class Preprocessing:
    """Image preprocessing: resize the shorter side, center-crop, scale to 0…1, and normalize with mean and std.

    Args:
        resize: length of the shorter side after resizing, in pixels; None keeps the size.
        crop: height and width of the center crop, in pixels; None disables cropping.
        mean: mean of each channel, for values from 0 to 1.
        std: standard deviation of each channel, for values from 0 to 1.
        interpolation: interpolation of the resize.
        inside: whether the model itself normalizes the images, as detectors do.

    Raises:
        OptionError: a size is not a positive integer, a standard deviation is not positive, `mean` and `std` have
            different lengths, or the interpolation is unknown.

    Examples:
        >>> from featuretap.specs.preprocessing import Preprocessing
        >>> Preprocessing(resize=232, crop=224, interpolation="bicubic").as_table()["resize"]
        232
        >>> Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).for_channels(1).mean
        (0.5,)
    """

    resize: int | None = 256
    crop: int | None = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    inside: bool = False

    def __post_init__(self) -> None:
        check_fields("preprocessing", self, FIELDS, OptionError)
        if len(self.mean) != len(self.std):
            raise OptionError(
                f"preprocessing has {len(self.mean)} values in mean and {len(self.std)} in std; give one for each "
                f"channel"
            )

    def for_channels(self, channels: int) -> Preprocessing:
        """Return the preprocessing for images with `channels` channels.

        One channel uses the averages of `mean` and `std`. Other numbers repeat their values.
        """
        if channels == len(self.mean):
            return self
        if channels == 1:
            return replace(self, mean=(sum(self.mean) / len(self.mean),), std=(sum(self.std) / len(self.std),))
        return replace(
            self, mean=tuple(islice(cycle(self.mean), channels)), std=tuple(islice(cycle(self.std), channels))
        )

    def for_images(self, images: str) -> Preprocessing:
        """Return the preprocessing for a model that takes `images` "cropped", "whole" or "raw" (see `HeadSpec.images`).

        If `images` matches the current kind, the preprocessing is unchanged. Otherwise, the sizes are those of
        torchvision's reference scripts: resize to 256 and crop to 224 for classifiers, a shorter side of 520 for
        segmenters, and no change for detectors.
        """
        if images == self._images():
            return self
        resize, crop = {"cropped": (256, 224), "whole": (520, None), "raw": (None, None)}[images]
        return replace(self, resize=resize, crop=crop, inside=images == "raw")

    def as_table(self) -> dict[str, Any]:
        """Return the preprocessing as a dict for files. `inside` is included only if it is True."""
        table = asdict(self)
        if not self.inside:
            del table["inside"]
        return table

    def _images(self) -> str:
        if self.inside:
            return "raw"
        return "whole" if self.crop is None else "cropped"


def check_channels(preprocessing: Preprocessing, model: str = "the model") -> None:
    """Check that a model takes images that image files can store.

    Args:
        preprocessing: preprocessing of the model.
        model: name of the model in the error message.

    Raises:
        OptionError: the model's images have neither one nor three channels.
    """
    channels = len(preprocessing.mean)
    if channels not in PICTURE_MODES:
        raise OptionError(
            f"{model} takes images with {channels} channels, but image files have 1 or 3; choose another model"
        )
