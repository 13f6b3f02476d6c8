"""Images with annotated objects, in whatever format the annotations are."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featuretap.support.errors import DataError, Hint
from featuretap.support.images import DEFAULT_PIXELS, pixel_limit, read_image
from featuretap.support.text import first_few
from featuretap.workflows.datasets.data_set import Boxes, DataSet, image_problem, raise_problems, size_problem
from featuretap.workflows.datasets.splits import rarest, split_files

logger = logging.getLogger("featuretap")

TOLERANCE = 1
"""Pixels that a box may reach beyond its image, as rounding makes it; it is clipped without being counted."""

MOST_BEYOND = 0.1
"""Share of boxes that may reach further; more are a sign of images of another size, or of another format."""

LONGEST_OUTLINE = 2**22
"""Pixels of the outline of an object, of each of which COCO's code keeps about 40 bytes."""

MASK_PIXELS = 12
"""Pixels of the masks of an image's objects together, as a multiple of the most pixels of an image. A byte each, and
copied once, they take 2 GiB by default."""

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
        masks = np.empty((len(self.outlines), image.height, image.width), np.uint8)
        if self.outlines:
            from faster_coco_eval.core import mask

            for target, outline in zip(masks, self.outlines, strict=True):
                target[:] = mask.decode(outline)
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
    """Return a data set of a training and a validation part, or of one part that is split, rare classes in both.

    Raises:
        DataError: images have so many objects that their masks would fill the memory.
    """
    _check_masks([image for part in parts for image in part], folder)
    labels = {name: label for label, name in enumerate(classes)}
    samples = [[image.sample(labels) for image in part] for part in parts]
    if len(samples) == 1:
        groups = rarest([set(image.names) for image in parts[0]])
        samples = split_files(samples[0], folder, groups, val_fraction, seed)
    return DataSet("detection", classes, samples[0], samples[1], held_out=len(parts) == 1)


def _check_masks(images: Sequence[AnnotatedImage], folder: Path) -> None:
    # A limit for small images says nothing about the memory there is for masks.
    limit = MASK_PIXELS * max(DEFAULT_PIXELS, pixel_limit())
    problems = [
        f"{image.path!r} of {image.size[0]}×{image.size[1]} pixels has {len(image.outlines)} objects, whose masks "
        f"exceed {MASK_PIXELS} times FEATURETAP_MAX_PIXELS={limit // MASK_PIXELS}"
        for image in images
        if image.outlines and len(image.outlines) * image.size[0] * image.size[1] > limit
    ]
    raise_problems(problems, folder, Hint("cut the images into tiles, make them smaller, or set it higher"))


def polygon_run_lengths(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> dict[str, Any]:
    """Return polygons, x and y of each point in turn, in an image (width, height) as the run lengths of one mask.

    Raises:
        ValueError: they reach far beyond the image, or are so long that drawing them would fill the memory.
    """
    from faster_coco_eval.core import mask

    width, height = size
    outline = 0.0
    for polygon in polygons:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        if (points < (-width, -height)).any() or (points > (2 * width, 2 * height)).any():
            raise ValueError(f"has a polygon that reaches far beyond its image of {width}×{height}")
        outline += float(np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum())
    if outline > LONGEST_OUTLINE:
        raise ValueError(f"has an outline of {outline:.0f} pixels, more than {LONGEST_OUTLINE}")
    return dict(mask.merge(mask.frPyObjects([list(polygon) for polygon in polygons], height, width)))


class BoxCheck:
    """Clips the boxes of one file or part, and counts what it repairs.

    Args:
        where: the file or folder, for messages.
        layout: of a box, for messages: "x, y, width, height in pixels".
    """

    def __init__(self, where: Path, layout: str) -> None:
        self._where, self._layout = str(where), layout
        self._count = 0
        self._beyond: list[str] = []
        self._empty: list[str] = []
        self._is_normalised = True

    def clip(self, box: Box, size: tuple[int, int], label: str) -> tuple[Box | None, str]:
        """Return a box (x1, y1, x2, y2) inside an image of this width and height, and what is wrong with it, or "".

        The box is None where something is wrong, and where it has no area; messages call it by the label.
        """
        (x1, y1, x2, y2), (width, height) = box, size
        if x2 < x1 or y2 < y1:
            return None, "has a box of negative size"
        if _is_empty(box):
            self._empty.append(label)
            return None, ""
        self._count += 1
        # VOC's corners count from 1, and are shifted.
        self._is_normalised &= max(map(abs, box)) <= 1
        is_beyond = min(x1, y1) < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE
        if is_beyond:
            corners = ", ".join(f"{value:g}" for value in box)
            self._beyond.append(f"{label} has a box from {corners} in an image of {width}×{height}")
        clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        # A sliver at the edge may be nothing once it is rounded to float32.
        if not _is_empty(clipped):
            return clipped, ""
        if not is_beyond:
            self._empty.append(label)
        return None, ""

    def report(self) -> None:
        """Log how many boxes were clipped or left out.

        Raises:
            DataError: all boxes lie between 0 and 1, or more than `MOST_BEYOND` of them reach beyond their images.
        """
        if self._count and self._is_normalised:
            raise DataError(
                f"all boxes in {self._where!r} lie between 0 and 1, as normalised coordinates do; give {self._layout}"
            )
        if self._empty:
            counted = "an object" if len(self._empty) == 1 else f"{len(self._empty)} objects"
            labels = first_few(self._empty, 5, "; ")
            logger.warning("left out %s of no width or height in %r: %s", counted, self._where, labels)
        if not self._beyond:
            return
        counted = f"{len(self._beyond)} of {self._count} boxes in {self._where!r}"
        labels = first_few(self._beyond, 5, "; ")
        if len(self._beyond) > MOST_BEYOND * self._count:
            raise DataError(
                f"{counted} reach beyond their images, more than {MOST_BEYOND:.0%}: {labels}; check that boxes are "
                f"{self._layout} of these images"
            )
        logger.warning("clipped %s that reach beyond their images: %s", counted, labels)


def _is_empty(box: Box) -> bool:
    x1, y1, x2, y2 = map(np.float32, box)
    return bool(x1 >= x2 or y1 >= y2)
