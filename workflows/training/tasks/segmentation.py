"""Semantic segmentation: a class per pixel, evaluated by mean IoU with torchmetrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from featuretap.models.transforms import compose, normalize
from featuretap.support.errors import TrainingError
from featuretap.support.images import check_ratio
from featuretap.workflows.datasets.data_set import IGNORED
from featuretap.workflows.training.tasks.task import ClassScore, Evaluator, Metrics, Task, Transform

AUXILIARY = 0.5
"""Weight of the auxiliary loss, as in torchvision's reference scripts."""


@dataclass(frozen=True)
class SegmentationTask(Task):
    """Semantic segmentation, for models with the interface of `SegmentationModel`.

    Training images are resized by a random factor from √`crop_scale` to 1 / √`crop_scale` of the model's size, and
    cropped to this size. A `crop_scale` of 0.25 gives torchvision's range of 0.5 to 2. `augment` adds the photometric
    distortion of SSD.
    """

    class_metric = "IoU"
    counted = "pixels"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Mean IoU over the classes, and pixel accuracy."""
        return ("mIoU", "pixel accuracy")

    def training_transform(self) -> Transform:
        """Return the transform of training samples: random resize and crop, horizontal flip, photometric distortion.

        Crops are padded with the mean color and the ignored label where they extend beyond the image.

        Returns:
            The transform, without steps that the settings disable.

        Raises:
            TrainingError: the preprocessing has no size.
        """
        size = self.preprocessing.resize
        if size is None:
            raise TrainingError(
                "segmentation is trained at a fixed image size, and the preprocessing does not define one; set size"
            )
        mode = InterpolationMode(self.preprocessing.interpolation)
        steps: list[nn.Module] = []
        if self.crop_scale < 1:
            factor = sqrt(self.crop_scale)
            # RandomResize excludes the upper end of its range.
            steps.append(v2.RandomResize(round(size * factor), round(size / factor) + 1, mode, antialias=True))
            middle = [round(255 * value) for value in self.preprocessing.mean]
            fill = {tv_tensors.Image: middle, tv_tensors.Mask: IGNORED}
            steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fill))
        else:
            steps.append(v2.Resize(size, mode, antialias=True))
        steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.augment != "none":
            steps.append(v2.RandomPhotometricDistort())
        return partial(_augment, self, v2.Compose(steps), normalize(self.preprocessing))

    def evaluation_transform(self) -> Transform:
        """Return the transform of `registry.transforms` for images; masks (H, W) are not changed."""
        return partial(_prepare, compose(self.preprocessing))

    def loss(self, model: nn.Module, images: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Return the cross entropy over labeled pixels, plus half the cross entropy of the auxiliary output."""
        batch, masks = _pad(images, 0.0), _pad(targets, IGNORED)
        logits = model(batch.contiguous(memory_format=torch.channels_last))
        loss = _cross_entropy([logits["out"]], [masks], self.label_smoothing)
        if "aux" in logits:
            loss = loss + AUXILIARY * _cross_entropy([logits["aux"]], [masks], self.label_smoothing)
        return loss

    def predict(self, model: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (K, h, w) of each image. Images of equal size are batched."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault(tuple(image.shape), []).append(index)
        logits: dict[int, Tensor] = {}
        for indices in by_shape.values():
            batch = torch.stack([images[index] for index in indices]).contiguous(memory_format=torch.channels_last)
            logits |= zip(indices, model(batch)["out"], strict=True)
        return [logits[index] for index in range(len(images))]

    def evaluation_loss(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the cross entropy at the size of the logits, without smoothing, and the number of labeled pixels."""
        masks = [
            F.interpolate(mask[None, None], size=logits.shape[-2:], mode="nearest-exact")[0]
            for logits, mask in zip(outputs, targets, strict=True)
        ]
        return _cross_entropy([logits[None] for logits in outputs], masks, 0.0), _count_labeled(masks)

    def evaluator(self, device: torch.device) -> Evaluator:
        """Return an evaluator of IoU and pixel accuracy, at the original size of the masks."""
        return _Evaluator(self.classes, device)


def _augment(
    task: SegmentationTask,
    transform: Callable[[Any, Any], tuple[Any, Any]],
    prepare: Callable[[Any], Tensor],
    image: Image.Image,
    mask: NDArray[np.uint8],
) -> tuple[Tensor, Tensor]:
    if task.preprocessing.resize is not None:
        check_ratio(image.width, image.height, round(task.preprocessing.resize / sqrt(task.crop_scale)))
    pixels = v2.functional.to_image(task.convert_image(image))
    augmented, classes = transform(pixels, tv_tensors.Mask(torch.tensor(mask)))
    return prepare(augmented), classes.as_subclass(Tensor)


def _prepare(prepare: Callable[[Any], Tensor], image: Image.Image, mask: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    return prepare(image), torch.tensor(mask)


def _pad(tensors: Sequence[Tensor], value: float) -> Tensor:
    """Return tensors (…, H, W) stacked, padded at the right and the bottom to the largest height and width."""
    height, width = (max(tensor.shape[axis] for tensor in tensors) for axis in (-2, -1))
    return torch.stack(
        [F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]), value=value) for tensor in tensors]
    )


def _cross_entropy(logits: Sequence[Tensor], masks: Sequence[Tensor], smoothing: float) -> Tensor:
    """Return the mean over labeled pixels of logits (N, K, H, W) and masks (N, H, W); 0 without labeled pixels."""
    sums = [
        F.cross_entropy(scores.float(), mask.long(), ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
        for scores, mask in zip(logits, masks, strict=True)
    ]
    return torch.stack(sums).sum() / _count_labeled(masks).clamp(min=1)


def _count_labeled(masks: Sequence[Tensor]) -> Tensor:
    return torch.stack([(mask != IGNORED).sum() for mask in masks]).sum()


def _classes_at(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return the most probable class of each pixel (H, W), from logits (K, h, w) enlarged to `size` (H, W)."""
    best = torch.full(tuple(size), -torch.inf, device=logits.device)
    classes = torch.zeros(tuple(size), dtype=torch.int64, device=logits.device)
    # One class at a time: all classes at the size of a photograph would need gigabytes.
    for label, small in enumerate(logits.float()):
        values = F.interpolate(small[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]
        classes[values > best] = label
        best = torch.maximum(best, values)
    return classes


class _Evaluator:
    def __init__(self, classes: tuple[str, ...], device: torch.device) -> None:
        self._classes = classes
        self._metric = MulticlassConfusionMatrix(len(classes), ignore_index=IGNORED, validate_args=False).to(device)
        # torchmetrics warns about a metric without updates, as in a process without samples.
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        self._metric.update(empty, empty)

    def update(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        for logits, mask in zip(outputs, targets, strict=True):
            self._metric.update(_classes_at(logits, mask.shape), mask.long())

    def compute(self) -> Metrics:
        confusion = self._metric.compute().cpu()
        correct, occurrences, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
        # NaN (0 / 0) for a class that neither occurs nor is predicted.
        overlaps = correct / (occurrences + predicted - correct)
        scores = {
            "mIoU": float(overlaps.nanmean()),
            "pixel accuracy": float(correct.sum() / confusion.sum()),
        }
        rows = zip(self._classes, occurrences.tolist(), overlaps.tolist(), strict=True)
        accuracies = {"accuracy": tuple((correct / occurrences).tolist())}
        return Metrics(scores, tuple(ClassScore(*row) for row in rows), confusion.numpy(), accuracies)
