"""What a task provides to the training loop: transforms, a loss, predictions and their metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.images import convert_mode

Transform = Callable[[Image.Image, Any], tuple[Any, Any]]
"""Image and target of a sample (see `datasets.data_set.Sample`) → both as tensors."""


class ClassScore(NamedTuple):
    """The score of one class: its name, how often it occurs, and the score from 0 to 1 (or NaN)."""

    name: str
    occurrences: int
    score: float


class Detections(NamedTuple):
    """Predictions and objects as COCO's results and annotations; images and categories count from 1."""

    predictions: list[dict[str, Any]]
    objects: list[dict[str, Any]]


@dataclass(frozen=True)
class Metrics:
    """Metrics of the predictions for a part of a data set.

    Args:
        scores: metric → value from 0 to 1; the first is `deciding_score`.
        per_class: in the order of the data set's classes.
        class_columns: further metric → its value for each class, in the same order.
        confusion: (classes, classes), counts by true class (row) and predicted class (column). Detection has one more
            of each, for the background.
        details: further metrics, which are reported once and not for every epoch.
        precisions: (classes, 101), of detection at recalls from 0 to 1 and an IoU of 0.5; NaN without objects.
        detections: predictions and objects of detection.
        heads: metrics of each head, of a model with several.
    """

    scores: Mapping[str, float]
    per_class: tuple[ClassScore, ...]
    confusion: NDArray[np.int64] | None = None
    class_columns: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)
    precisions: NDArray[np.float64] | None = None
    detections: Detections | None = None
    heads: Mapping[str, "Metrics"] = field(default_factory=dict)

    @property
    def deciding_score(self) -> float:
        """The score by which models are compared; NaN, as of a data set without objects, is the worst."""
        score = next(iter(self.scores.values()))
        return -1.0 if isnan(score) else score


class Evaluator(Protocol):
    """Collects predictions, and computes their metrics, over all processes, each sample once."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Add what `Task.predict` returned for a batch, and the batch's targets."""

    def compute(self) -> Metrics:
        """Return the metrics, the same in every process. All processes must call it."""


@dataclass(frozen=True)
class Task(ABC):
    """Classification, detection or segmentation with one data set's classes.

    Args:
        classes: the data set's.
        preprocessing: the model's.
        flip: probability of mirroring a training image.
        crop_scale: minimum area of the random crop, as a fraction of the training image; 1 disables cropping.
        augment: "none", or torchvision's "trivial" (TrivialAugment, arXiv 2103.10158) or "rand" (RandAugment, arXiv
            1909.13719); all of it for classification, a distortion of colours for other tasks.
        label_smoothing: of the training loss (arXiv 1512.00567, section 7), for tasks that have it.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    flip: float = 0.5
    crop_scale: float = 0.35
    augment: Literal["none", "trivial", "rand"] = "none"
    label_smoothing: float = 0.0

    class_metric: ClassVar[str]
    """Name of the score of a class, such as "AP"."""
    counted: ClassVar[str]
    """What the occurrences of a class are: "images", "objects" or "pixels"."""
    has_evaluation_loss: ClassVar[bool] = True

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores of every epoch by which models can be compared, the deciding one first."""

    def convert_image(self, image: Image.Image) -> Image.Image:
        """Return an image in the mode of the model's channels."""
        return convert_mode(image, "L" if len(self.preprocessing.mean) == 1 else "RGB")

    @abstractmethod
    def training_transform(self) -> Transform:
        """Return the transform of training samples, augmentation included."""

    @abstractmethod
    def evaluation_transform(self) -> Transform:
        """Return the transform of validation samples, always the same, as `registry.transforms` does."""

    def collate(self, samples: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Return the images and the targets of a batch: lists, since sizes may differ, unless a task stacks them."""
        return [image for image, _ in samples], [target for _, target in samples]

    @abstractmethod
    def loss(self, model: nn.Module, images: Any, targets: Any) -> Tensor:
        """Return the mean loss of a batch of a model in training, which may be wrapped for several processes."""

    @abstractmethod
    def predict(self, model: nn.Module, images: Any) -> Any:
        """Return the outputs of a model in evaluation for a batch."""

    def evaluation_loss(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Return the mean loss of what `predict` returned, for tasks that have one, and what it is the mean of.

        That is a count of images or pixels, by which the losses of batches are weighted, so that their mean does not
        depend on the batch size.
        """
        raise NotImplementedError

    @abstractmethod
    def evaluator(self, device: torch.device) -> Evaluator:
        """Return an empty evaluator."""
