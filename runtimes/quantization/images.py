"""Images to calibrate on, and others to evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from featuretap.models.transforms import compose, compose_for_size
from featuretap.specs.description import Description
from featuretap.specs.preprocessing import check_channels
from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_files import ImageFile, list_images
from featuretap.support.images import read_image

MAXIMUM_CALIBRATED, MAXIMUM_COMPARED = 32, 256
"""Images to calibrate on, and images to compare on; more change little."""

MINIMUM_IMAGES = 10
"""Images without a separate set to compare on; with fewer, the part held back is too small."""

HELD_BACK = 5
"""Of this many images, the last is held back from calibration."""


def read_images(
    files: Sequence[ImageFile],
    transform: Callable[[Any], Tensor],
    purpose: str,
    errors: dict[str, str],
    done: Callable[[], object] = lambda: None,
) -> Iterator[Tensor]:
    """Yield images (1, C, H, W) one by one, and collect name → reason of the unreadable ones in `errors`.

    Raises:
        DataError: none can be read.
    """
    for file in files:
        try:
            image = transform(read_image(Path(file.path)))[None]
        except ImageError as error:
            errors[file.text] = str(error)
        else:
            yield image
        done()
    if len(errors) == len(files):
        reason = next(iter(errors.values()))
        raise DataError(f"none of the {len(files)} images to {purpose} can be read: {reason}")


def split_images(images: Sequence[Path], evaluate_on: Sequence[Path]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Return images to calibrate on and others to compare on, by default every fifth; evenly spread.

    Raises:
        DataError: there are too few, or no others.
    """
    found = list_images(images)
    if evaluate_on:
        calibrated = {file.path for file in found}
        compared = [file for file in list_images(evaluate_on) if file.path not in calibrated]
        if not compared:
            raise DataError(
                "every image to compare on is one that is calibrated on, to which the ranges are fitted; give others"
            )
        return sample_files(found, MAXIMUM_CALIBRATED), sample_files(compared, MAXIMUM_COMPARED)
    if len(found) < MINIMUM_IMAGES:
        raise DataError(
            f"there are too few images to calibrate on some and compare on others: {len(found)}; give "
            f"{MINIMUM_IMAGES} or more, or others to compare on"
        )
    calibrated_on = [file for place, file in enumerate(found, 1) if place % HELD_BACK]
    return sample_files(calibrated_on, MAXIMUM_CALIBRATED), sample_files(
        found[HELD_BACK - 1 :: HELD_BACK], MAXIMUM_COMPARED
    )


def make_transform(description: Description, size: tuple[int, int] | None) -> Callable[[Any], Tensor]:
    """Return image → tensor (C, H, W) of a size (height, width), or of that of the weights, square if uncropped."""
    preprocessing = description.preprocessing
    check_channels(preprocessing, repr(description.name))
    if size is None:
        return compose(replace(preprocessing, crop=preprocessing.crop or preprocessing.resize))
    return compose_for_size(preprocessing, size)


def sample_files(files: Sequence[ImageFile], maximum: int) -> list[ImageFile]:
    """Return files that are evenly spread over those given, at most `maximum`."""
    count = min(len(files), maximum)
    return [files[place * len(files) // count] for place in range(count)]
