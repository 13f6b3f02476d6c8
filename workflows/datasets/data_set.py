"""A data set: training and validation samples, class names, what a sample is, and checks of its files."""

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
"""Value of the pixels of a mask that have no class and are not counted, as in Pascal VOC."""

TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

CHUNK = 1024
"""Images that are submitted to the threads together, so that the queue stays small for a million images."""


class Boxes(NamedTuple):
    """The objects in an image.

    Attributes:
        boxes: float32 (M, 4) as x1, y1, x2, y2 in pixels of the image as it is read, x2 > x1 and y2 > y1.
        labels: int64 (M,), indices into the data set's `classes`, from 0.
        ignored: bool (M,): crowds and objects marked difficult, which are neither trained on nor counted.
        masks: uint8 (M, H, W), 1 where the object is, or None where they were not requested.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    masks: NDArray[np.uint8] | None = None


class FileIds(NamedTuple):
    """What an annotation file calls an image and the classes, by their names."""

    image: int
    classes: Mapping[str, int]


class Sample(Protocol):
    """An image with its target: its class, its `Boxes`, or the class of every pixel, uint8 (H, W); picklable."""

    @property
    def name(self) -> str:
        """What messages and pictures call the image: its path, or "digits 17"."""

    @property
    def label(self) -> int | None:
        """The class of the image, without reading it; None for tasks other than classification."""

    def read(self) -> tuple[Image.Image, Any]:
        """Return the image, upright and in mode "RGB" or, where the set is grey, "L", and its target.

        Raises:
            ImageError: the image cannot be read.
            DataError: its target cannot be read.
        """

    def check(self) -> str:
        """Return what is wrong with the image or its target, or "". Cheaper than reading where possible.

        What does not need the pixels is checked when the data set is opened.
        """


@dataclass(frozen=True)
class DataSet:
    """Training and validation images.

    Args:
        task: what it is for.
        classes: name of every class, in the order of its label. The background is one of them for segmentation, and
            not for detection.
        train: training images.
        val: validation images.
        mirrors: whether a mirrored image keeps its class, as photographs do and digits do not.
        label: what messages call its format or the set, such as "COCO".
        targets: what the images come with, such as "boxes", or "" where the label tells.
        held_out: whether the validation images were split off, since the data has no parts.
        ids: name of a sample → what its annotation file calls it, where images and classes have ids there.
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
class _Relabelled:
    """A sample with other labels, by its own."""

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
    """Return a data set whose labels are those of more classes, or of the same in another order."""
    if data.classes == classes:
        return data
    labels = tuple(map(classes.index, data.classes))
    train, val = ([_Relabelled(sample, labels) for sample in part] for part in (data.train, data.val))
    return replace(data, classes=classes, train=train, val=val)


def utf8(name: str) -> str:
    """Return a name as models and tables have it, in UTF-8: folders may have any bytes, and JSON half characters."""
    return name.encode(errors="backslashreplace").decode()


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


def raise_problems(problems: Sequence[str], where: Path, hint: Hint | None = None) -> None:
    """Raise an error that counts the problems and names the first five; without any, do nothing.

    Args:
        problems: what is wrong.
        where: the file or folder.
        hint: what to do about all of them.

    Raises:
        DataError: there are problems.
    """
    if problems:
        counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError(f"{counted} in {str(where)!r}: {first_few(problems, 5, '; ')}", hint=hint)


def image_problem(path: str, size: tuple[int, int] | None = None) -> str:
    """Return what is wrong with an image file, such as another size (width, height) when upright than given, or "".

    JPEGs are decoded at an eighth of their size, which misses no truncation and is faster.
    """
    try:
        with open_image(Path(path), path) as image:
            if image.mode.startswith(("I", "F")):
                # Only the full reader knows whether the range of the values can be read.
                raise ImageError(image.mode)
            found = _upright(image)
            image.draft("L", (1, 1))
            image.load()
    except ImageError:
        # The full reader knows what it means, and whether it matters.
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
    """Return width and height of an image file when upright, in pixels, from its header."""
    with open_image(Path(path), path) as image:
        try:
            return _upright(image)
        except (SyntaxError, ValueError, struct.error):
            # The reader leaves images alone whose orientation cannot be read.
            return image.size


def _upright(image: Image.Image) -> tuple[int, int]:
    # Pillow turns a TIFF itself when it is loaded, and reports its upright size already.
    turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED
    return (image.height, image.width) if turned else image.size
