"""The data set and its samples, and checks of image files."""

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap.support.errors import DataError, Hint, ImageError
from featuretap.support.images import ORIENTATION, open_image, read_image
from featuretap.support.text import first_few

Task = Literal["classification", "segmentation", "detection"]
Part = Literal["val", "train", "all"]

IGNORED = 255
"""Mask value of pixels without a class, which losses and metrics ignore, as in Pascal VOC."""

TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

CHUNK = 1024
"""Number of images submitted to the threads at a time, which keeps the queue short for millions of images."""


class Boxes(NamedTuple):
    """The objects in an image.

    Attributes:
        boxes: float32 (M, 4), x1, y1, x2, y2 in pixels of the upright image, with x2 > x1 and y2 > y1.
        labels: int64 (M,), indices into the data set's `classes`.
        ignored: bool (M,), True for crowds and difficult objects, which training and metrics ignore.
        masks: uint8 (M, H, W), 1 inside the object; None if masks were not requested.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    masks: NDArray[np.uint8] | None = None


class FileIds(NamedTuple):
    """The id of an image in its annotation file, and the ids of the classes by name."""

    image: int
    classes: Mapping[str, int]


class Sample(Protocol):
    """An image with its target: a class, `Boxes`, or the class of each pixel as uint8 (H, W). Samples are picklable."""

    @property
    def name(self) -> str:
        """Name of the image in messages and pictures: its path, or a text such as "digits 17"."""

    @property
    def label(self) -> int | None:
        """The class of the image, available without reading it; None for tasks other than classification."""

    def read(self) -> tuple[Image.Image, Any]:
        """Read the image and its target.

        Returns:
            The upright image, in mode "RGB", or "L" for grayscale data sets, and the target.

        Raises:
            ImageError: the image cannot be read.
            DataError: its target cannot be read.
        """

    def check(self) -> str:
        """Return the problem with the image or its target, or "". Faster than `read` where possible.

        Checks that do not need pixels run when the data set is opened.
        """


@dataclass(frozen=True)
class DataSet:
    """Training and validation images.

    Args:
        task: task of the data set.
        classes: names of the classes, in the order of the labels. The background is a class for segmentation, but not
            for detection.
        train: training images.
        val: validation images.
        mirrors: whether a mirrored image keeps its class: True for photographs, False for digits.
        label: name of the format or data set in messages, such as "COCO".
        targets: annotations of the images, such as "boxes"; "" if the label makes them clear.
        held_out: whether the validation images were split off, since the data has no validation set.
        ids: name of a sample → ids in its annotation file, for formats with ids.
    """

    task: Task
    classes: tuple[str, ...]
    train: Sequence[Sample]
    val: Sequence[Sample]
    mirrors: bool = True
    label: str = ""
    targets: str = ""
    held_out: bool = False
    ids: Mapping[str, FileIds] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Relabeled:
    """A sample whose labels are replaced: label i becomes `labels[i]`."""

    sample: Sample
    labels: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.sample.name

    @property
    def label(self) -> int | None:
        return None if self.sample.label is None else self.labels[self.sample.label]

    def read(self) -> tuple[Image.Image, Any]:
        image, target = self.sample.read()
        if isinstance(target, Boxes):
            return image, target._replace(labels=np.array(self.labels, np.int64)[target.labels])
        if isinstance(target, int):
            return image, self.labels[target]
        table = np.full(256, IGNORED, np.uint8)
        table[: len(self.labels)] = self.labels
        return image, table[target]

    def check(self) -> str:
        return self.sample.check()


def with_classes(data: DataSet, classes: tuple[str, ...]) -> DataSet:
    """Return a data set relabeled for `classes`, which contain all its classes in any order."""
    if data.classes == classes:
        return data
    labels = tuple(map(classes.index, data.classes))
    train, val = ([_Relabeled(sample, labels) for sample in part] for part in (data.train, data.val))
    return replace(data, classes=classes, train=train, val=val)


def utf8(name: str) -> str:
    """Return a name as valid UTF-8, with other bytes (of folders) and lone surrogates (of JSON) escaped."""
    return name.encode(errors="backslashreplace").decode()


def check_readable(data: DataSet, report: Callable[[int], None]) -> None:
    """Check all images and targets of a data set in several threads.

    Args:
        data: the data set.
        report: called with 1 after each image.

    Raises:
        DataError: images cannot be used; the message counts all of them and names the first ten.
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


def raise_problems(problems: Sequence[str], where: Path, hint: Hint | None = None) -> None:
    """Raise an error if there are problems.

    Args:
        problems: descriptions of the problems.
        where: the file or folder.
        hint: advice that applies to all of them.

    Raises:
        DataError: there are problems; the message counts all of them and names the first five.
    """
    if problems:
        counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError(f"{counted} in {str(where)!r}: {first_few(problems, 5, '; ')}", hint=hint)


def image_problem(path: str, size: tuple[int, int] | None = None) -> str:
    """Return the problem with an image file, or "".

    JPEGs are decoded at an eighth of their size, which is faster and still detects truncated files.

    Args:
        path: the image file.
        size: expected width and height of the upright image, or None for any.

    Returns:
        A description of the problem.
    """
    try:
        with open_image(Path(path), path) as image:
            if image.mode.startswith(("I", "F")):
                # read_image checks the range of the values.
                raise ImageError(image.mode)
            found = _upright(image)
            image.draft("L", (1, 1))
            image.load()
    except ImageError:
        # read_image tolerates some of these problems, and describes the others.
        try:
            found = read_image(Path(path)).size
        except ImageError as error:
            return error.problem
    return size_problem(path, found, size) if size else ""


def size_problem(path: str, found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Return the problem that the size of an image differs from the size in its annotations, or ""."""
    if found == expected:
        return ""
    turned = " (the image may have been rotated after annotation)" if found == expected[::-1] else ""
    return f"{path!r} is {found[0]}×{found[1]}, but its annotations are for {expected[0]}×{expected[1]}{turned}"


def upright_size(path: str) -> tuple[int, int]:
    """Return width and height of the upright image in pixels, from the header of the file."""
    with open_image(Path(path), path) as image:
        try:
            return _upright(image)
        except (SyntaxError, ValueError, struct.error):
            # As in read_image: an unreadable orientation is ignored.
            return image.size


def _upright(image: Image.Image) -> tuple[int, int]:
    # Pillow rotates a TIFF on loading, and already reports its upright size.
    turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED
    return (image.height, image.width) if turned else image.size
