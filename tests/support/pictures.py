"""Pixels of drawn pictures."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) of a PNG."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def has_white_edges(page: NDArray[np.uint8]) -> bool:
    """Return whether the edges of a picture are white, so that nothing is cut off."""
    return all(bool((edge == 255).all()) for edge in (page[0], page[-1], page[:, 0], page[:, -1]))


def has_colour(page: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return which pixels (H, W) have a color."""
    return (page == colour).all(-1)
