"""What a data set is to everything else: two parts, class names, and images with what is known of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["IGNORED", "Boxes", "DataSet", "Samples", "Target", "Task"]

Task = Literal["classification", "segmentation", "detection"]

IGNORED = 255
"""The value of a pixel of a mask that belongs to no class and counts nowhere, as in Pascal VOC."""


class Boxes(NamedTuple):
    """What is in an image for a detector.

    Attributes:
        boxes: float32 (M, 4) as x1, y1, x2, y2 in pixels of the image as it is read, x2 > x1 and y2 > y1.
        labels: int64 (M,), places in the data set's `classes`, from 0.
        ignored: bool (M,): crowds and objects marked difficult, which are neither trained on nor counted.
        masks: uint8 (M, H, W), 1 where the object is, or None where they were not asked for.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    masks: NDArray[np.uint8] | None = None


Target = int | Boxes | NDArray[np.uint8]
"""The class of an image, what is in it, or the class of every pixel (H, W), `IGNORED` included."""


class Samples(Protocol):
    """One part of a data set. It can be pickled, for the processes of a loader."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        """Return an image, upright and in mode "RGB" or, where the set is grey, "L", and its `Target`.

        Raises:
            ImageError: the image cannot be read.
            DataError: its target cannot.
        """
        ...

    def name(self, index: int) -> str:
        """Return what messages and pictures call an image: its path, or "digits 17"."""
        ...

    def check(self, index: int) -> str:
        """Return what is wrong with an image or its target, or "" if it can be used. Cheaper than reading where it can.

        What does not need the pixels is checked when the data set is opened; this is for what does.
        """
        ...

    @property
    def labels(self) -> Sequence[int] | None:
        """The class of every image of a data set for classification, without reading any; None for other tasks."""
        ...


@dataclass(frozen=True)
class DataSet:
    """Images to learn from and images to judge by.

    Args:
        task: what it is for.
        classes: name of every class, in the order of its label. For segmentation the background is one of them; for
            detection it is none.
        train: what is learned from.
        val: what is judged by.
        mirrors: whether a mirrored image is still of its class, as photographs are and digits are not.
    """

    task: Task
    classes: tuple[str, ...]
    train: Samples
    val: Samples
    mirrors: bool = True
