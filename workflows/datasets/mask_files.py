"""Reading a file whose pixels are numbers of classes. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featuretap.support.errors import DataError
from featuretap.workflows.datasets.data_set import IGNORED
from featuretap.workflows.datasets.image_checks import image_problem

__all__ = ["mask_problem", "read_mask"]

MODES = ("1", "L", "P")
"""Pillow's names of images with one number of up to 8 bits for each pixel."""


def read_mask(path: str) -> NDArray[np.uint8]:
    """Return the number of every pixel's class (H, W). A palette is there for looking at it, and means nothing.

    Raises:
        DataError: it cannot be read, or its pixels are no such numbers.
    """
    if not path.lower().endswith(".png"):
        raise DataError(f"the mask {path!r} is no PNG file; other formats may change its numbers")
    try:
        with Image.open(path) as image:
            mode, mask = image.mode, np.array(ImageOps.exif_transpose(image))
    except Exception as error:
        # Whatever Pillow's readers let through.
        raise DataError(f"the mask {image_problem(path) or f'{path!r} is damaged: {error}'}") from error
    if mode not in MODES:
        raise DataError(
            f"the mask {path!r} is of mode {mode!r}; masks are of 'L' or 'P', with the number of a class for each pixel"
        )
    return mask.astype(np.uint8)


def mask_problem(path: str, mask: NDArray[np.uint8], size: tuple[int, int], classes: int) -> str:
    """Return that a mask is not of its image's size (width, height) or has values that are no class, or ""."""
    height, width = mask.shape
    if (width, height) != size:
        return f"the mask {path!r} is {width}×{height}, but its image is {size[0]}×{size[1]}"
    largest = int(mask.max(initial=0, where=mask != IGNORED))
    if largest >= classes:
        return (
            f"the mask {path!r} has the value {largest}, but there are {classes} classes, from 0 to {classes - 1}, and "
            f"{IGNORED} for what is ignored"
        )
    return ""
