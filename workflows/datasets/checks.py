"""Checking the files of a data set before training starts, and reporting many problems at once. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from featuretap.support.errors import DataError, ImageError
from featuretap.support.images import read_image
from featuretap.support.text import first_few
from featuretap.workflows.datasets.data_set import DataSet

ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

CHUNK = 1024
"""Images that are submitted to the threads together, so that the queue stays small for a million images."""


def check_readable(data: DataSet, report: Callable[[int], None]) -> None:
    """Check every image and target of both parts, in several threads; `report` is called with 1 after each.

    Raises:
        DataError: some cannot be used; the first ten are named, and all are counted.
    """
    problems: list[str] = []
    done = 0
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for part in (data.train, data.val):
            for start in range(0, len(part), CHUNK):
                for problem in pool.map(lambda sample: sample.check(), part[start : start + CHUNK]):
                    problems += [problem] if problem else []
                    done += 1
                    report(1)
    if problems:
        raise DataError(f"{len(problems)} of {done} images cannot be used: {first_few(problems, 10, '; ')}")


def raise_problems(problems: Sequence[str], where: Path) -> None:
    """Raise an error that counts the problems and names the first five; without any, do nothing.

    Raises:
        DataError: there are problems.
    """
    if problems:
        counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError(f"{counted} in {str(where)!r}: {first_few(problems, 5, '; ')}")


def image_problem(path: str, size: tuple[int, int] | None = None) -> str:
    """Return what is wrong with an image file, such as another size (width, height) when upright than given, or "".

    JPEGs are decoded at an eighth of their size, which misses no truncation and is faster.
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
