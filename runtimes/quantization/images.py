"""Calibration images, and the held-out images that the result is compared on."""

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
"""Maximum number of images to calibrate on and to compare on. More images change the result little."""

MINIMUM_IMAGES = 10
"""Minimum number of images if no separate images to compare on are given; fewer leave too few held-out images."""

HELD_BACK = 5
"""Every fifth image is held out from calibration."""


def read_images(
    files: Sequence[ImageFile],
    transform: Callable[[Any], Tensor],
    purpose: str,
    errors: dict[str, str],
    done: Callable[[], object] = lambda: None,
) -> Iterator[Tensor]:
    """Yield preprocessed images (1, C, H, W) and skip unreadable files.

    Args:
        files: the image files.
        transform: maps a decoded image to a tensor (C, H, W).
        purpose: what the images are for, such as "calibrate on", for the error message.
        errors: filled with file name → reason for each unreadable file.
        done: called after each file.

    Yields:
        Tensor: one image at a time.

    Raises:
        DataError: no file can be read.
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
        raise DataError(f"cannot read any of the {len(files)} images to {purpose}: {reason}")


def split_images(images: Sequence[Path], evaluate_on: Sequence[Path]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Choose the images to calibrate on and the images to compare on, both evenly spread over the files.

    Args:
        images: folders and files to calibrate on.
        evaluate_on: folders and files to compare on; if empty, every fifth file of `images` is held out.

    Returns:
        The files to calibrate on and the files to compare on.

    Raises:
        DataError: there are too few images, or no images to compare on that are not calibrated on.
    """
    found = list_images(images)
    if evaluate_on:
        calibrated = {file.path for file in found}
        compared = [file for file in list_images(evaluate_on) if file.path not in calibrated]
        if not compared:
            raise DataError("all images to compare on are also calibration images; use other images to compare on")
        return sample_files(found, MAXIMUM_CALIBRATED), sample_files(compared, MAXIMUM_COMPARED)
    if len(found) < MINIMUM_IMAGES:
        raise DataError(
            f"{len(found)} images are too few to calibrate on some and compare on the rest; use at least "
            f"{MINIMUM_IMAGES}, or separate images to compare on"
        )
    calibrated_on = [file for place, file in enumerate(found, 1) if place % HELD_BACK]
    return sample_files(calibrated_on, MAXIMUM_CALIBRATED), sample_files(
        found[HELD_BACK - 1 :: HELD_BACK], MAXIMUM_COMPARED
    )


def make_transform(description: Description, size: tuple[int, int] | None) -> Callable[[Any], Tensor]:
    """Return the preprocessing of a model's images.

    Args:
        description: the model's description.
        size: (height, width) in pixels to resize to; None for the size in the checkpoint's preprocessing, which is
            square if it does not crop.

    Returns:
        A function from a decoded image to a tensor (C, H, W).
    """
    preprocessing = description.preprocessing
    check_channels(preprocessing, repr(description.name))
    if size is None:
        return compose(replace(preprocessing, crop=preprocessing.crop or preprocessing.resize))
    return compose_for_size(preprocessing, size)


def sample_files(files: Sequence[ImageFile], maximum: int) -> list[ImageFile]:
    """Return at most `maximum` files, evenly spread over `files`."""
    count = min(len(files), maximum)
    return [files[place * len(files) // count] for place in range(count)]
