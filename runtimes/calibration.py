"""Images for quantisation: to measure ranges of activations on, and to compare the result on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from featuretap.models.transforms import check_channels, compose, compose_for_size
from featuretap.specs.description import Description
from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_files import ImageFile, list_images
from featuretap.support.images import read_image

__all__ = ["Images", "split_images", "transform_for"]

MAXIMUM = 256
"""Images to calibrate on, and images to compare on; more change little."""

MINIMUM = 10
"""Images without a separate set to compare on; with fewer, the part held back is too small."""

HELD_BACK = 5
"""Of this many images, the last is held back from calibration."""


@dataclass
class Images:
    """Images that are read one by one; unreadable ones are skipped.

    Args:
        files: the image files.
        transform: image → tensor (C, H, W).
        purpose: what they are for, for the message: "calibrate on".
        done: called after each.
        errors: name of a skipped image → why it cannot be read, filled while reading.
    """

    files: Sequence[ImageFile]
    transform: Callable[[Any], Tensor]
    purpose: str
    done: Callable[[], object]
    errors: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield images (1, C, H, W).

        Raises:
            DataError: none of them can be read.
        """
        for file in self.files:
            try:
                image = read_image(Path(file.path))
            except ImageError as error:
                self.errors[file.text] = str(error)
            else:
                yield self.transform(image)[None]
            self.done()
        if not self.readable:
            reason = next(iter(self.errors.values()))
            raise DataError(f"none of the {len(self.files)} images to {self.purpose} can be read: {reason}")

    @property
    def readable(self) -> list[str]:
        """The names of the images without an error so far."""
        return [file.text for file in self.files if file.text not in self.errors]


def split_images(images: Sequence[Path], judge_on: Sequence[Path]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Return the images to calibrate on and those to compare on, at most `MAXIMUM` of each, evenly sampled.

    Without `judge_on`, every fifth image is held back for the comparison.

    Raises:
        DataError: there are no images, too few to hold any back, or none to compare on besides those to calibrate on.
    """
    found = list_images(images)
    if judge_on:
        calibrated = {file.path for file in found}
        compared = [file for file in list_images(judge_on) if file.path not in calibrated]
        if not compared:
            raise DataError(
                "every image to compare on is one that is calibrated on, to which the ranges are fitted; give others"
            )
        return _sample(found), _sample(compared)
    if len(found) < MINIMUM:
        raise DataError(
            f"there are too few images to calibrate on some and compare on others: {len(found)}; give {MINIMUM} or "
            "more, or others to compare on"
        )
    calibrated_on = [file for place, file in enumerate(found, 1) if place % HELD_BACK]
    return _sample(calibrated_on), _sample(found[HELD_BACK - 1 :: HELD_BACK])


def transform_for(description: Description, size: tuple[int, int] | None) -> Callable[[Any], Tensor]:
    """Return image → tensor (C, H, W) for a model, all of one size.

    Args:
        description: of the model.
        size: (height, width) in pixels to which images are resized; None for the resizing and the crop that the weights
            were trained with, or a square where they were trained without a crop.

    Raises:
        OptionError: the model's images have neither one nor three channels.
    """
    check_channels(description)
    preprocessing = description.preprocessing
    if size is None:
        return compose(replace(preprocessing, crop=preprocessing.crop or preprocessing.resize))
    return compose_for_size(preprocessing, size)


def _sample(files: Sequence[ImageFile]) -> list[ImageFile]:
    count = min(len(files), MAXIMUM)
    return [files[place * len(files) // count] for place in range(count)]
