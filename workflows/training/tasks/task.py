"""Interface of a task for the training loop: transforms, loss, predictions and metrics."""

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
"""Function from image and target of a sample (see `datasets.data_set.Sample`) to tensors."""


class ClassScore(NamedTuple):
    """The score of one class: name, number of occurrences, and score from 0 to 1 (or NaN)."""

    name: str
    occurrences: int
    score: float


class Detections(NamedTuple):
    """Predictions (COCO results) and objects (COCO annotations); image and category ids start at 1."""

    predictions: list[dict[str, Any]]
    objects: list[dict[str, Any]]


@dataclass(frozen=True)
class Metrics:
    """Metrics of a model on a data set.

    Args:
        scores: metric → value from 0 to 1; the first is the `deciding_score`.
        per_class: scores per class, in the order of the data set's classes.
        confusion: counts (classes, classes) by true class (row) and predicted class (column). Detection has an
            additional row and column for the background.
        class_columns: other metrics per class: metric → values in the order of the classes.
        details: other metrics, reported once instead of for every epoch.
        precisions: precisions (classes, 101) of detection at recalls from 0 to 1 and IoU 0.5; NaN without objects.
        detections: predictions and objects of detection.
        heads: name of the head → metrics, for models with several heads.
        images: number of images, set by `featuretap.workflows.training.evaluation.evaluate`.
    """

    scores: Mapping[str, float]
    per_class: tuple[ClassScore, ...]
    confusion: NDArray[np.int64] | None = None
    class_columns: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)
    precisions: NDArray[np.float64] | None = None
    detections: Detections | None = None
    heads: Mapping[str, "Metrics"] = field(default_factory=dict)
    images: int = 0

    @property
    def deciding_score(self) -> float:
        """The score that selects the best epoch. NaN, as for data without objects, counts as the worst."""
        score = next(iter(self.scores.values()))
        return -1.0 if isnan(score) else score


class Evaluator(Protocol):
    """Collects predictions and computes metrics over all processes. Each sample counts once."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Add the outputs of `Task.predict` for a batch, and the targets of the batch."""

    def compute(self) -> Metrics:
        """Return the metrics, equal in all processes. Every process must call this method."""


@dataclass(frozen=True)
class Task(ABC):
    """Base class of the tasks: classification, detection and segmentation.

    Args:
        classes: classes of the data set.
        preprocessing: preprocessing of the model.
        flip: probability of a horizontal flip of training images.
        crop_scale: minimum area of the random crop, as a fraction of the training image; 1 disables cropping.
        augment: "none", or for classification torchvision's "trivial" (TrivialAugment, arXiv 2103.10158) or "rand"
            (RandAugment, arXiv 1909.13719). Other tasks use photometric distortion for both.
        label_smoothing: label smoothing of the training loss (arXiv 1512.00567, section 7), for tasks that support it.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    flip: float = 0.5
    crop_scale: float = 0.35
    augment: Literal["none", "trivial", "rand"] = "none"
    label_smoothing: float = 0.0

    class_metric: ClassVar[str]
    """Name of the score per class, such as "AP"."""
    counted: ClassVar[str]
    """Unit of the occurrences of a class: "images", "objects" or "pixels"."""
    has_evaluation_loss: ClassVar[bool] = True

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores that are reported for every epoch, the deciding score first."""

    def convert_image(self, image: Image.Image) -> Image.Image:
        """Return the image as grayscale or RGB, as the model's channels require."""
        return convert_mode(image, "L" if len(self.preprocessing.mean) == 1 else "RGB")

    @abstractmethod
    def training_transform(self) -> Transform:
        """Return the transform of training samples, with augmentation."""

    @abstractmethod
    def evaluation_transform(self) -> Transform:
        """Return the deterministic transform of validation samples, as in `registry.transforms`."""

    def collate(self, samples: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Return the images and targets of a batch, as lists, since sizes may differ. Subclasses may stack them."""
        return [image for image, _ in samples], [target for _, target in samples]

    @abstractmethod
    def loss(self, model: nn.Module, images: Any, targets: Any) -> Tensor:
        """Return the mean loss of a batch. `model` is in training mode and may be wrapped for several processes."""

    @abstractmethod
    def predict(self, model: nn.Module, images: Any) -> Any:
        """Return the outputs of a model in evaluation mode for a batch."""

    def evaluation_loss(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the outputs of `predict`, and the number of images or pixels in this mean.

        Losses of batches are weighted by this number, so the mean over a data set does not depend on the batch size.
        Only tasks with `has_evaluation_loss` implement this method.
        """
        raise NotImplementedError

    @abstractmethod
    def evaluator(self, device: torch.device) -> Evaluator:
        """Return an empty evaluator."""
