"""Images with boxes in them, whatever format these were written in. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap.support.errors import DataError
from featuretap.support.images import read_image
from featuretap.workflows.datasets.data_set import Boxes
from featuretap.workflows.datasets.image_checks import image_problem, size_problem
from featuretap.workflows.datasets.splitting import rarest, relative_name, split

__all__ = ["AnnotatedImage", "BoxedImages", "box_problem", "clipped", "divided", "gathered"]

TOLERANCE = 1
"""Pixels that a box may reach beyond its image, as rounding makes it; it is clipped."""

Box = tuple[float, float, float, float]


class AnnotatedImage(NamedTuple):
    """What a file of annotations says of an image.

    Attributes:
        path: the image file.
        size: width and height in pixels.
        boxes: x1, y1, x2, y2 of every object in pixels, inside the image.
        names: class of every object.
        ignored: whether every object is a crowd or difficult.
        outlines: run lengths of every object's mask, as the COCO API has them; None where masks were not asked for.
    """

    path: str
    size: tuple[int, int]
    boxes: list[Box]
    names: list[str]
    ignored: list[bool]
    outlines: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class BoxedImages:
    """Image files, and what is in each.

    Args:
        paths: the files.
        sizes: width and height of each in pixels when upright.
        boxes: what is in each, without masks.
        outlines: run lengths of the masks of each image's objects; None where masks were not asked for.
    """

    paths: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    boxes: tuple[Boxes, ...]
    outlines: tuple[list[dict[str, Any]], ...] | None = None

    labels = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, Boxes]:
        image = read_image(Path(self.paths[index]))
        problem = size_problem(self.paths[index], image.size, self.sizes[index])
        if problem:
            raise DataError(problem)
        boxes = self.boxes[index]
        if self.outlines is not None:
            boxes = boxes._replace(masks=_masks(self.outlines[index], image.size))
        return image, boxes

    def name(self, index: int) -> str:
        """Return an image's path."""
        return self.paths[index]

    def check(self, index: int) -> str:
        """Return what is wrong with an image, or that it is not of the size that its boxes are for, or ""."""
        return image_problem(self.paths[index], self.sizes[index])


def gathered(images: Sequence[AnnotatedImage], classes: Sequence[str]) -> BoxedImages:
    """Return annotated images as samples, with the classes' places as labels."""
    labels = {name: label for label, name in enumerate(classes)}
    outlines = [image.outlines for image in images if image.outlines is not None]
    return BoxedImages(
        tuple(image.path for image in images),
        tuple(image.size for image in images),
        tuple(
            Boxes(
                np.array(image.boxes, np.float32).reshape(-1, 4),
                np.array([labels[name] for name in image.names], np.int64),
                np.array(image.ignored, np.bool_),
            )
            for image in images
        ),
        tuple(outlines) if outlines else None,
    )


def divided(
    images: Sequence[AnnotatedImage], folder: Path, val_fraction: float, seed: int
) -> list[list[AnnotatedImage]]:
    """Return images in two parts, to learn from and to judge by, with rare classes in both where that can be.

    Raises:
        DataError: they cannot be divided (see `featuretap.workflows.datasets.splitting.split`).
    """
    names = [relative_name(image.path, folder) for image in images]
    groups = rarest([set(image.names) for image in images])
    return [[images[index] for index in part] for part in split(names, groups, val_fraction, seed, str(folder))]


def box_problem(box: Box, size: tuple[int, int]) -> str:
    """Return what is wrong with a box (x1, y1, x2, y2) in an image of this width and height, or ""."""
    width, height = size
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return "has a box of negative size"
    if np.float32(x1) == np.float32(x2) or np.float32(y1) == np.float32(y2):
        return "has an empty box"
    left, top, right, bottom = clipped(box, size)
    beyond = min(x1, y1) < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE
    # A sliver at the edge may be nothing once it is rounded to float32.
    if beyond or np.float32(left) >= np.float32(right) or np.float32(top) >= np.float32(bottom):
        corners = ", ".join(f"{value:g}" for value in box)
        return f"has a box from {corners}, which lies outside the image of {width}×{height}"
    return ""


def clipped(box: Box, size: tuple[int, int]) -> Box:
    """Return a box (x1, y1, x2, y2) without what is outside an image of this width and height."""
    width, height = size
    x1, y1, x2, y2 = box
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def _masks(outlines: Sequence[dict[str, Any]], size: tuple[int, int]) -> NDArray[np.uint8]:
    width, height = size
    if not outlines:
        return np.zeros((0, height, width), np.uint8)
    from faster_coco_eval.core import mask

    return np.ascontiguousarray(mask.decode(list(outlines)).transpose(2, 0, 1))
