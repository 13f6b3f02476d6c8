"""Finding out whether an image file can be used, faster than by reading it. No torch."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from featuretap.support.errors import ImageError
from featuretap.support.images import read_image

__all__ = ["image_problem", "size_problem", "upright_size"]

ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


def image_problem(path: str, size: tuple[int, int] | None = None) -> str:
    """Return what is wrong with an image file, or "".

    JPEGs are decoded at an eighth of their size, which misses no truncation and is faster.

    Args:
        path: the file.
        size: width and height that it should have in pixels when upright, or None if any will do.
    """
    try:
        with Image.open(path) as image:
            found = _upright(image)
            image.draft("L", (1, 1))
            image.load()
    except Exception:
        # Whatever Pillow's readers let through: the full reader knows what it means, and whether it matters.
        try:
            found = read_image(Path(path)).size
        except ImageError as error:
            return error.problem
    return size_problem(path, found, size) if size else ""


def size_problem(path: str, found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Return that an image is not of the size (width, height) that its annotations are for, or ""."""
    if found == expected:
        return ""
    turned = " (it may have been turned after it was annotated)" if found == expected[::-1] else ""
    return f"{path!r} is {found[0]}×{found[1]}, but its annotations are for {expected[0]}×{expected[1]}{turned}"


def upright_size(path: str) -> tuple[int, int]:
    """Return width and height of an image file when upright, in pixels, from its header.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return _upright(image)
    except Exception:
        return read_image(Path(path)).size


def _upright(image: Image.Image) -> tuple[int, int]:
    turned = image.getexif().get(ORIENTATION) in TURNED
    return (image.height, image.width) if turned else image.size
