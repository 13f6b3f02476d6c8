"""Finding image files. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from featuretap.support.errors import DataError

__all__ = ["SUFFIXES", "find_images", "folders_in", "images_below", "is_image_file"]

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Endings of the names of image files, in lower case."""


def is_image_file(path: Path) -> bool:
    """Say whether a file's name is that of an image; hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_images(folder: Path) -> list[Path]:
    """Return every image file in a folder and below it, sorted by path, so that the order is the same everywhere.

    Hidden files and folders are passed over; symbolic links are followed, each folder once.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; give a folder of images")
    found = images_below(folder)
    if not found:
        raise DataError(f"{str(folder)!r} holds no images; their names end in {', '.join(sorted(SUFFIXES))}")
    return found


def images_below(folder: Path) -> list[Path]:
    """Return what `find_images` returns, or an empty list where there is nothing."""
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        # A link to a folder above would lead round for ever.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            found += [path for path in (Path(root, name) for name in files) if is_image_file(path)]
        seen.add(real)
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise error


def folders_in(folder: Path) -> list[Path]:
    """Return the folders right in a folder, hidden ones aside, sorted by name as text ("10" before "9")."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
