"""Images for quantisation: to measure ranges of activations on, and to compare the result on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from featuretap.models.transforms import check_channels, compose, compose_for_size
from featuretap.specs.description import Description
from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_files import ImageFile, list_images
from featuretap.support.images import read_image

MAXIMUM = 256
"""Images to calibrate on, and images to compare on; more change little."""

MINIMUM = 10
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
    """Yield images (1, C, H, W) one by one, and collect the errors of unreadable ones by name.

    Args:
        files: the image files.
        transform: image → tensor (C, H, W).
        purpose: for the message: "calibrate on".
        errors: receives name → reason.
        done: called after each.

    Raises:
        DataError: none of them can be read.
    """
    for file in files:
        try:
            image = read_image(Path(file.path))
        except ImageError as error:
            errors[file.text] = str(error)
        else:
            yield transform(image)[None]
        done()
    if len(errors) == len(files):
        reason = next(iter(errors.values()))
        raise DataError(f"none of the {len(files)} images to {purpose} can be read: {reason}")


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


def make_transform(description: Description, size: tuple[int, int] | None) -> Callable[[Any], Tensor]:
    """Return image → tensor (C, H, W) of a size (height, width), or of that of the weights, square if uncropped."""
    check_channels(description)
    preprocessing = description.preprocessing
    if size is None:
        return compose(replace(preprocessing, crop=preprocessing.crop or preprocessing.resize))
    return compose_for_size(preprocessing, size)


def _sample(files: Sequence[ImageFile]) -> list[ImageFile]:
    count = min(len(files), MAXIMUM)
    return [files[place * len(files) // count] for place in range(count)]
