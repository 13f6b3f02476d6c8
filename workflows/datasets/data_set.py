"""A data set: training and validation samples, class names, and what a sample is. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Task = Literal["classification", "segmentation", "detection"]

IGNORED = 255
"""Value of the pixels of a mask that have no class and are not counted, as in Pascal VOC."""


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


class Sample(Protocol):
    """An image with its target: its class, its `Boxes`, or the class of every pixel, uint8 (H, W); picklable."""

    @property
    def name(self) -> str:
        """What messages and pictures call the image: its path, or "digits 17"."""
        ...

    @property
    def label(self) -> int | None:
        """The class of the image, without reading it; None for tasks other than classification."""
        ...

    def read(self) -> tuple[Image.Image, Any]:
        """Return the image, upright and in mode "RGB" or, where the set is grey, "L", and its target.

        Raises:
            ImageError: the image cannot be read.
            DataError: its target cannot be read.
        """
        ...

    def check(self) -> str:
        """Return what is wrong with the image or its target, or "". Cheaper than reading where possible.

        What does not need the pixels is checked when the data set is opened.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileSample:
    """What the samples of all image files have in common."""

    path: str

    @property
    def name(self) -> str:
        """The path."""
        return self.path


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
    """

    task: Task
    classes: tuple[str, ...]
    train: Sequence[Sample]
    val: Sequence[Sample]
    mirrors: bool = True
