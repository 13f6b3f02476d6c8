"""Classification: one class per image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassStatScores
from torchvision.transforms import InterpolationMode, v2

from featuretap.models.transforms import check_strip, compose, normalize
from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.training.tasks.task import ClassScore, Evaluator, Metrics, Task, Transform

SIZE = 224
"""Default image size in pixels, for preprocessing without a crop."""

MAX_CLASSES = 2000
"""Maximum number of classes for a confusion matrix, whose size is quadratic in it."""

TOP_K = 5
"""K of the top-k accuracy, as is usual for ImageNet."""

TOP_ACCURACY = f"top-{TOP_K} accuracy"

IGNORED = -1
"""Label of samples that metrics ignore."""

POLICIES: dict[str, list[nn.Module]] = {
    "none": [],
    "trivial": [v2.TrivialAugmentWide()],
    "rand": [v2.RandAugment()],
}


def preprocessing_of_size(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """Return preprocessing that resizes the shorter side to `size` and takes the center crop."""
    return Preprocessing(size, size, preprocessing.mean, preprocessing.std, preprocessing.interpolation)


@dataclass(frozen=True)
class ClassificationTask(Task):
    """Classification with cross entropy loss and accuracy. Models return logits (N, classes)."""

    class_metric = "accuracy"
    counted = "images"

    def training_transform(self) -> Transform:
        """Return the transform: random crop, horizontal flip, the policy of `augment`, and normalization."""
        preprocessing = self.preprocessing
        size, mode = preprocessing.crop or SIZE, InterpolationMode(preprocessing.interpolation)
        steps: list[Callable[[Any], Any]] = [self.convert_image]
        if self.crop_scale < 1:
            steps.append(v2.RandomResizedCrop(size, (self.crop_scale, 1.0), interpolation=mode, antialias=True))
        else:
            shorter = preprocessing.resize or size
            resize = v2.Resize(shorter, mode, antialias=True)
            steps += [partial(check_strip, shorter=shorter), resize, v2.CenterCrop(size)]
        steps += [v2.RandomHorizontalFlip(self.flip), *POLICIES[self.augment]]
        return partial(_transform, v2.Compose([*steps, normalize(preprocessing)]))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Accuracy, and for more than five classes top-5 accuracy."""
        return ("accuracy", TOP_ACCURACY) if len(self.classes) > TOP_K else ("accuracy",)

    def evaluation_transform(self) -> Transform:
        """Return the transform of `registry.transforms`."""
        return partial(_transform, compose(self.preprocessing))

    def collate(self, samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) in channels-last memory format, and labels (N,)."""
        images, labels = zip(*samples, strict=True)
        return torch.stack(images).contiguous(memory_format=torch.channels_last), torch.tensor(labels)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy with label smoothing."""
        return F.cross_entropy(model(images), targets, label_smoothing=self.label_smoothing)

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        return model(images)

    def evaluation_loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross entropy and the number of images. Without smoothing, so that runs can be compared."""
        return F.cross_entropy(outputs.float(), targets), torch.tensor(len(targets))

    def evaluator(self, device: torch.device) -> Evaluator:
        """Return an evaluator for the metrics, scores per class and the confusion matrix."""
        return _Evaluator(self.classes, device)


class _Evaluator:
    def __init__(self, classes: tuple[str, ...], device: torch.device) -> None:
        self._classes = classes
        count = len(classes)
        metrics: dict[str, Metric] = {"by class": MulticlassStatScores(count, average="none", ignore_index=IGNORED)}
        if count > TOP_K:
            metrics["top"] = MulticlassAccuracy(count, top_k=TOP_K, average="micro", ignore_index=IGNORED)
        if count <= MAX_CLASSES:
            metrics["confusion"] = MulticlassConfusionMatrix(count, ignore_index=IGNORED)
        self._metrics = MetricCollection(metrics, compute_groups=False).to(device)  # type: ignore[arg-type]
        # torchmetrics warns about a metric without updates, as in a process without samples.
        self.update(torch.zeros(1, count, device=device), torch.tensor([IGNORED], device=device))

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self._metrics.update(outputs, targets)

    def compute(self) -> Metrics:
        values = {name: value.cpu() for name, value in self._metrics.compute().items()}
        correct, *_, occurrences = values["by class"].unbind(1)
        scores = {"accuracy": float(correct.sum() / occurrences.sum())}
        if "top" in values:
            scores[TOP_ACCURACY] = float(values["top"])
        rows = zip(self._classes, occurrences.tolist(), (correct / occurrences).tolist(), strict=True)
        confusion = values["confusion"].numpy() if "confusion" in values else None
        return Metrics(scores, tuple(ClassScore(*row) for row in rows), confusion)


def _transform(transform: Callable[[Any], Any], image: Image.Image, label: int) -> tuple[Tensor, int]:
    return transform(image), label
