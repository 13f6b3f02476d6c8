"""What the loop asks of a task: images and targets for a model, a loss, and how good predictions are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

__all__ = ["Augmentation", "ClassScore", "Judgement", "Measuring", "Task", "Transform"]

Transform = Callable[[Image.Image, Any], tuple[Any, Any]]
"""An image of a data set and its target (see `DataSet`) → both as tensors, for one sample."""


@dataclass(frozen=True)
class Augmentation:
    """How images are varied in training.

    Args:
        flip: probability that an image is mirrored.
        scale: least share of an image's area that a random crop of it has; 1 for no random crops.
        policy: "none", or torchvision's "trivial" (TrivialAugment, arXiv 2103.10158) or "rand" (RandAugment, arXiv
            1909.13719); for classification all of it, for other tasks the colours only.
    """

    flip: float = 0.5
    scale: float = 0.35
    policy: Literal["none", "trivial", "rand"] = "none"


class ClassScore(NamedTuple):
    """How good predictions are for one class: its name, how often it occurs, and the score from 0 to 1 (or NaN)."""

    name: str
    occurrences: int
    score: float


@dataclass(frozen=True)
class Judgement:
    """How good the predictions for a part of a data set are.

    Args:
        scores: measure → value from 0 to 1; the first is the one by which models are compared.
        per_class: in the order of the data set's classes.
        confusion: (classes, classes), how often what is of the class of the row was taken for that of the column; None
            where that is no question.
    """

    scores: Mapping[str, float]
    per_class: tuple[ClassScore, ...]
    confusion: NDArray[np.int64] | None = None


class Measuring(Protocol):
    """Collects predictions, and judges them together. Counts over all processes, each sample once."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in what `Task.predict` returned for a batch, and the batch's targets."""
        ...

    def compute(self) -> Judgement:
        """Judge all that was taken in, in every process at once. Every process gets the same answer."""
        ...


class Task(Protocol):
    """Classification, detection or segmentation with one data set's classes."""

    @property
    def class_measure(self) -> str:
        """What the score of a class is called, such as "AP"."""
        ...

    @property
    def counted(self) -> str:
        """What the count of a class counts: "images", "objects" or "pixels"."""
        ...

    def training_transform(self) -> Transform:
        """Return what prepares and varies a sample to learn from."""
        ...

    def judging_transform(self) -> Transform:
        """Return what prepares a sample to be judged by, always in the same way, as `registry.transforms` does."""
        ...

    def collate(self, samples: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Return the images and the targets of a batch."""
        ...

    def loss(self, model: nn.Module, images: Any, targets: Any) -> Tensor:
        """Return the mean loss of a batch of a model in training, which may be wrapped for several processes."""
        ...

    def predict(self, model: nn.Module, images: Any) -> Any:
        """Return what a model in evaluation says of a batch."""
        ...

    def judging_loss(self, outputs: Any, targets: Any) -> Tensor | None:
        """Return the mean loss of what `predict` returned; None where the model gives none in evaluation."""
        ...

    def measuring(self, device: torch.device) -> Measuring:
        """Return something that judges predictions."""
        ...
