"""Preprocessing as data: how images were prepared when a set of weights was trained."""

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
"""Channels of a picture → Pillow's mode."""


def _is_bounded(value: Any) -> bool:
    return is_number(value, -LARGEST, LARGEST)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to 0…1, subtract the mean, divide by the deviation.

    Args:
        resize: pixels of the shorter side after resizing, None to keep the size.
        crop: height and width in pixels of the crop, None to keep the whole image.
        mean: per channel, of values from 0 to 1.
        std: per channel, of values from 0 to 1.
        interpolation: of the resizing.
        inside: whether the model subtracts the mean and divides by the deviation itself, as detectors do.

    Raises:
        OptionError: sizes that are no positive whole numbers, deviations that are not positive, other numbers of means
            than of deviations, or an unknown interpolation.
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
                f"preprocessing has {len(self.mean)} means and {len(self.std)} deviations; give both alike"
            )

    def for_channels(self, channels: int) -> Preprocessing:
        """Return it for images of another number of `channels`: averaged for one, repeated for more than given."""
        if channels == len(self.mean):
            return self
        if channels == 1:
            return replace(self, mean=(sum(self.mean) / len(self.mean),), std=(sum(self.std) / len(self.std),))
        return replace(
            self, mean=tuple(islice(cycle(self.mean), channels)), std=tuple(islice(cycle(self.std), channels))
        )

    def for_images(self, images: str) -> Preprocessing:
        """Return it for a model that wants its `images` "cropped", "whole" or "raw" (see `HeadSpec.images`).

        What was trained in the same way keeps its sizes; else they are those of torchvision's references: 256 cropped
        to 224 for classifiers, a shorter side of 520 for segmenters, and no change for detectors.
        """
        if images == self._images():
            return self
        resize, crop = {"cropped": (256, 224), "whole": (520, None), "raw": (None, None)}[images]
        return replace(self, resize=resize, crop=crop, inside=images == "raw")

    def as_table(self) -> dict[str, Any]:
        """Return it as a file states it; `inside` only where it is true."""
        table = asdict(self)
        if not self.inside:
            del table["inside"]
        return table

    def _images(self) -> str:
        if self.inside:
            return "raw"
        return "whole" if self.crop is None else "cropped"


def check_channels(preprocessing: Preprocessing, model: str = "the model") -> None:
    """Refuse a model that does not take pictures.

    Args:
        preprocessing: of the model.
        model: what the message calls it.

    Raises:
        OptionError: its images have neither one nor three channels.
    """
    channels = len(preprocessing.mean)
    if channels not in PICTURE_MODES:
        raise OptionError(
            f"{model} reads images of {channels} channels, and a picture has 1 or 3; choose another model"
        )
