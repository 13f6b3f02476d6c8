"""Images with annotated objects, independent of the annotation format."""

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
"""Pixels by which rounding can extend a box beyond its image. Such boxes are clipped without a warning."""

MOST_BEYOND = 0.1
"""Maximum fraction of boxes that extend further. More suggest images of another size, or another box format."""

LONGEST_OUTLINE = 2**22
"""Maximum length of an object's outline in pixels. COCO's code needs about 40 bytes per pixel."""

MASK_PIXELS = 12
"""Maximum total pixels of an image's object masks, as a multiple of the maximum pixels of an image. With one byte per
pixel and one copy, this is 2 GiB by default."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _BoxedImage:
    """An image file with boxes, and with outlines if masks were requested; see `AnnotatedImage`."""

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
    """An image and the annotations of its objects.

    Args:
        path: the image file.
        size: width and height of the upright image in pixels.
        outlines: run-length encoded mask of each object, as in the COCO API; None if masks were not requested.
        boxes: x1, y1, x2, y2 of each object in pixels, inside the image.
        names: class of each object.
        ignored: for each object, whether it is a crowd or difficult.
    """

    path: str
    size: tuple[int, int]
    outlines: list[dict[str, Any]] | None = None
    boxes: list[Box] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ignored: list[bool] = field(default_factory=list)

    def sample(self, labels: Mapping[str, int]) -> _BoxedImage:
        """Return the image as a sample. `labels` maps class names to labels."""
        boxes = Boxes(
            np.array(self.boxes, np.float32).reshape(-1, 4),
            np.array([labels[name] for name in self.names], np.int64),
            np.array(self.ignored, np.bool_),
        )
        return _BoxedImage(self.path, self.size, boxes, self.outlines)


def detection_set(
    parts: Sequence[Sequence[AnnotatedImage]], classes: tuple[str, ...], folder: Path, val_fraction: float, seed: int
) -> DataSet:
    """Return a detection data set.

    Args:
        parts: training and validation images, or one part to split, with rare classes in both halves.
        classes: names of the classes.
        folder: folder of the data set.
        val_fraction: fraction of a single part to hold out for validation.
        seed: seed of the split.

    Returns:
        The data set.

    Raises:
        DataError: images have so many objects that their masks would need too much memory.
    """
    _check_masks([image for part in parts for image in part], folder)
    labels = {name: label for label, name in enumerate(classes)}
    samples = [[image.sample(labels) for image in part] for part in parts]
    if len(samples) == 1:
        groups = rarest([set(image.names) for image in parts[0]])
        samples = split_files(samples[0], folder, groups, val_fraction, seed)
    return DataSet("detection", classes, samples[0], samples[1], held_out=len(parts) == 1)


def _check_masks(images: Sequence[AnnotatedImage], folder: Path) -> None:
    # A low limit on image pixels should not reduce the memory for masks.
    limit = MASK_PIXELS * max(DEFAULT_PIXELS, pixel_limit())
    problems = [
        f"{image.path!r} of {image.size[0]}×{image.size[1]} pixels has {len(image.outlines)} objects, whose masks "
        f"exceed {MASK_PIXELS} times FEATURETAP_MAX_PIXELS={limit // MASK_PIXELS}"
        for image in images
        if image.outlines and len(image.outlines) * image.size[0] * image.size[1] > limit
    ]
    raise_problems(problems, folder, Hint("cut the images into tiles, shrink them, or increase the limit"))


def polygon_run_lengths(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> dict[str, Any]:
    """Return the run-length encoded mask of an object.

    Args:
        polygons: polygons of the object, each as x1, y1, x2, y2, … in pixels.
        size: width and height of the image.

    Returns:
        The mask, as in the COCO API.

    Raises:
        ValueError: polygons extend far beyond the image, or are so long that drawing them would need too much memory.
    """
    from faster_coco_eval.core import mask

    width, height = size
    outline = 0.0
    for polygon in polygons:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        if (points < (-width, -height)).any() or (points > (2 * width, 2 * height)).any():
            raise ValueError(f"has a polygon that extends far beyond its image of {width}×{height}")
        outline += float(np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum())
    if outline > LONGEST_OUTLINE:
        raise ValueError(f"has an outline of {outline:.0f} pixels, more than {LONGEST_OUTLINE}")
    return dict(mask.merge(mask.frPyObjects([list(polygon) for polygon in polygons], height, width)))


class BoxCheck:
    """Clips the boxes of one file or part, and counts the changes.

    Args:
        where: the file or folder, for messages.
        layout: format of a box, for messages, such as "x, y, width, height in pixels".
    """

    def __init__(self, where: Path, layout: str) -> None:
        self._where, self._layout = str(where), layout
        self._count = 0
        self._beyond: list[str] = []
        self._empty: list[str] = []
        self._is_normalized = True

    def clip(self, box: Box, size: tuple[int, int], label: str) -> tuple[Box | None, str]:
        """Clip a box to its image.

        Args:
            box: x1, y1, x2, y2 in pixels.
            size: width and height of the image.
            label: name of the object in messages.

        Returns:
            The clipped box and "", or None and a description of the problem. A box without area gives None and "".
        """
        (x1, y1, x2, y2), (width, height) = box, size
        if x2 < x1 or y2 < y1:
            return None, "has a box of negative size"
        if _is_empty(box):
            self._empty.append(label)
            return None, ""
        self._count += 1
        # abs: VOC's corners count from 1, so normalized ones are shifted below 0.
        self._is_normalized &= max(map(abs, box)) <= 1
        is_beyond = min(x1, y1) < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE
        if is_beyond:
            corners = ", ".join(f"{value:g}" for value in box)
            self._beyond.append(f"{label} has a box from {corners} in an image of {width}×{height}")
        clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        # A sliver at the edge may have no area after rounding to float32.
        if not _is_empty(clipped):
            return clipped, ""
        if not is_beyond:
            self._empty.append(label)
        return None, ""

    def report(self) -> None:
        """Log how many boxes were clipped or skipped.

        Raises:
            DataError: all boxes are between 0 and 1, or more than `MOST_BEYOND` of them extend beyond their images.
        """
        if self._count and self._is_normalized:
            raise DataError(
                f"all boxes in {self._where!r} are between 0 and 1, as if normalized; convert them to {self._layout}"
            )
        if self._empty:
            counted = "1 object" if len(self._empty) == 1 else f"{len(self._empty)} objects"
            labels = first_few(self._empty, 5, "; ")
            logger.warning("skipped %s without width or height in %r: %s", counted, self._where, labels)
        if not self._beyond:
            return
        counted = f"{len(self._beyond)} of {self._count} boxes in {self._where!r}"
        labels = first_few(self._beyond, 5, "; ")
        if len(self._beyond) > MOST_BEYOND * self._count:
            raise DataError(
                f"{counted} extend beyond their images, more than {MOST_BEYOND:.0%}: {labels}; check that boxes are "
                f"{self._layout} of these images"
            )
        logger.warning("clipped %s that extend beyond their images: %s", counted, labels)


def _is_empty(box: Box) -> bool:
    x1, y1, x2, y2 = map(np.float32, box)
    return bool(x1 >= x2 or y1 >= y2)
