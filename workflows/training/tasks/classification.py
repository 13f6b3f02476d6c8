"""Classification: one class for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassStatScores
from torchvision.transforms import InterpolationMode, v2

from featuretap.models.transforms import compose, normalised
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.images import convert_mode
from featuretap.workflows.training.tasks.task import Augmentation, ClassScore, Judgement, Transform

__all__ = ["ClassificationTask", "prepared"]

SIZE = 224
"""Pixels of a side where the weights' images were not cropped."""

MOST_IN_A_MATRIX = 2000
"""Classes beyond which nobody looks at a confusion matrix, which grows with their square."""

BEST = 5
"""How many of the most probable classes may hold the right one, as in ImageNet's second measure."""

NOBODYS = -1
"""A label that counts nowhere."""

POLICIES: dict[str, Callable[[], nn.Module] | None] = {
    "none": None,
    "trivial": v2.TrivialAugmentWide,
    "rand": v2.RandAugment,
}


def prepared(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """Return how images of a size are prepared: the shorter side resized to it, and the square in the middle taken."""
    return Preprocessing(size, size, preprocessing.mean, preprocessing.std, preprocessing.interpolation)


@dataclass(frozen=True)
class ClassificationTask:
    """Images → logits (N, classes), with cross entropy and accuracy.

    Args:
        classes: the data set's.
        preprocessing: the model's.
        augmentation: how training images vary.
        label_smoothing: share of the target that all classes have alike (arXiv 1512.00567, section 7).
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    augmentation: Augmentation
    label_smoothing: float

    class_measure = "accuracy"
    counted = "images"

    def training_transform(self) -> Transform:
        """Return a random crop, mirroring and the policy, then the model's own normalisation."""
        prepared, varied = self.preprocessing, self.augmentation
        size, mode = prepared.crop or SIZE, InterpolationMode(prepared.interpolation)
        steps: list[Callable[[Any], Any]] = []
        if varied.scale < 1:
            steps.append(v2.RandomResizedCrop(size, (varied.scale, 1.0), interpolation=mode, antialias=True))
        else:
            steps += [v2.Resize(prepared.resize or size, mode, antialias=True), v2.CenterCrop(size)]
        steps.append(v2.RandomHorizontalFlip(varied.flip))
        policy = POLICIES[varied.policy]
        if policy is not None:
            steps.append(policy())
        return partial(_apply, len(prepared.mean), v2.Compose([*steps, normalised(prepared)]))

    def judging_transform(self) -> Transform:
        """Return what `registry.transforms` makes of the model's preprocessing."""
        return partial(_apply, len(self.preprocessing.mean), compose(self.preprocessing))

    def collate(self, samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W), channels last in memory, and labels (N,)."""
        images, labels = zip(*samples, strict=True)
        return torch.stack(images).contiguous(memory_format=torch.channels_last), torch.tensor(labels)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy with smoothed labels."""
        return F.cross_entropy(model(images), targets, label_smoothing=self.label_smoothing)

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        return model(images)

    def judging_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy, without smoothing, so that it can be compared between runs."""
        return F.cross_entropy(outputs.float(), targets)

    def measuring(self, device: torch.device) -> _Accuracy:
        """Return accuracy, that of the best five of more than five classes, and what is taken for what."""
        return _Accuracy(self.classes, device)


class _Accuracy:
    """Counts of right predictions by class, and what is taken for what."""

    def __init__(self, classes: tuple[str, ...], device: torch.device) -> None:
        self.classes = classes
        count = len(classes)
        metrics: dict[str, Metric] = {"by class": MulticlassStatScores(count, average="none", ignore_index=NOBODYS)}
        if count > BEST:
            metrics["best"] = MulticlassAccuracy(count, top_k=BEST, average="micro", ignore_index=NOBODYS)
        if count <= MOST_IN_A_MATRIX:
            metrics["confusion"] = MulticlassConfusionMatrix(count, ignore_index=NOBODYS)
        self.metrics = {name: metric.to(device) for name, metric in metrics.items()}
        # torchmetrics warns of what has seen nothing, as that of a process without a share of its own.
        self.update(torch.zeros(1, count, device=device), torch.tensor([NOBODYS], device=device))

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits (N, classes) and labels (N,)."""
        for metric in self.metrics.values():
            metric.update(outputs, targets)

    def compute(self) -> Judgement:
        """Judge them."""
        found = {name: metric.compute().cpu() for name, metric in self.metrics.items()}
        right, *_, occurring = found["by class"].unbind(1)
        scores = {"accuracy": float(right.sum() / occurring.sum())}
        if "best" in found:
            scores[f"top-{BEST} accuracy"] = float(found["best"])
        rows = zip(self.classes, occurring.tolist(), (right / occurring).tolist(), strict=True)
        confusion = found["confusion"].numpy() if "confusion" in found else None
        return Judgement(scores, tuple(ClassScore(*row) for row in rows), confusion)


def _apply(channels: int, transform: Callable[[Any], Any], image: Image.Image, label: int) -> tuple[Tensor, int]:
    return transform(convert_mode(image, "L" if channels == 1 else "RGB")), label
