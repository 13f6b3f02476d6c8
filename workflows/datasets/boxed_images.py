"""Images with annotated objects, in whatever format the annotations are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featuretap.support.errors import DataError
from featuretap.support.images import read_image
from featuretap.workflows.datasets.data_set import Boxes, DataSet, image_problem, size_problem
from featuretap.workflows.datasets.splits import rarest, split_files

TOLERANCE = 1
"""Pixels that a box may reach beyond its image, as rounding makes it; it is clipped."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _BoxedImage:
    """An image file with boxes, and the outlines of its objects where masks were requested; see `AnnotatedImage`."""

    name: str
    size: tuple[int, int]
    boxes: Boxes
    outlines: list[dict[str, Any]] | None

    label = None

    def read(self) -> tuple[Image.Image, Boxes]:
        image = read_image(Path(self.name))
        problem = size_problem(self.name, image.size, self.size)
        if problem:
            raise DataError(problem)
        if self.outlines is None:
            return image, self.boxes
        if not self.outlines:
            return image, self.boxes._replace(masks=np.zeros((0, image.height, image.width), np.uint8))
        from faster_coco_eval.core import mask

        masks = np.ascontiguousarray(mask.decode(self.outlines).transpose(2, 0, 1))
        return image, self.boxes._replace(masks=masks)

    def check(self) -> str:
        return image_problem(self.name, self.size)


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image and the annotations of its objects, as they are read from a file.

    Args:
        path: the image file.
        size: width and height in pixels, upright.
        outlines: run lengths of every object's mask, as in the COCO API; None where masks were not requested.
        boxes: x1, y1, x2, y2 of every object in pixels, inside the image.
        names: class of every object.
        ignored: whether every object is a crowd or difficult.
    """

    path: str
    size: tuple[int, int]
    outlines: list[dict[str, Any]] | None = None
    boxes: list[Box] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ignored: list[bool] = field(default_factory=list)

    def sample(self, labels: Mapping[str, int]) -> _BoxedImage:
        """Return it as a sample, with the label of every class's name."""
        boxes = Boxes(
            np.array(self.boxes, np.float32).reshape(-1, 4),
            np.array([labels[name] for name in self.names], np.int64),
            np.array(self.ignored, np.bool_),
        )
        return _BoxedImage(self.path, self.size, boxes, self.outlines)


def detection_set(
    parts: Sequence[Sequence[AnnotatedImage]], classes: tuple[str, ...], folder: Path, val_fraction: float, seed: int
) -> DataSet:
    """Return a data set of a training and a validation part, or of one part that is split, rare classes in both."""
    labels = {name: label for label, name in enumerate(classes)}
    samples = [[image.sample(labels) for image in part] for part in parts]
    if len(samples) == 1:
        groups = rarest([set(image.names) for image in parts[0]])
        samples = split_files(samples[0], folder, groups, val_fraction, seed)
    return DataSet("detection", classes, samples[0], samples[1])


def box_problem(box: Box, size: tuple[int, int]) -> str:
    """Return what is wrong with a box (x1, y1, x2, y2) in an image of this width and height, or ""."""
    width, height = size
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return "has a box of negative size"
    if np.float32(x1) == np.float32(x2) or np.float32(y1) == np.float32(y2):
        return "has an empty box"
    left, top, right, bottom = clip_box(box, size)
    beyond = min(x1, y1) < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE
    # A sliver at the edge may be nothing once it is rounded to float32.
    if beyond or np.float32(left) >= np.float32(right) or np.float32(top) >= np.float32(bottom):
        corners = ", ".join(f"{value:g}" for value in box)
        return f"has a box from {corners}, which lies outside the image of {width}×{height}"
    return ""


def clip_box(box: Box, size: tuple[int, int]) -> Box:
    """Return a box (x1, y1, x2, y2) without what is outside an image of this width and height."""
    width, height = size
    x1, y1, x2, y2 = box
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
