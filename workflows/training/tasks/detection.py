"""Detection: boxes to learn from, and mAP, counted by torchmetrics and faster-coco-eval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan, sqrt
from typing import Any, cast

import torch
import torch.distributed
from PIL import Image
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision import tv_tensors
from torchvision.transforms import v2

from featuretap.models.transforms import compose, normalised
from featuretap.specs import HeadSpec
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import OptionError
from featuretap.support.images import convert_mode
from featuretap.workflows.datasets.data_set import Boxes
from featuretap.workflows.training.tasks.task import Augmentation, ClassScore, Judgement, Transform

__all__ = ["DetectionTask", "sized"]

Target = dict[str, Tensor]
Prepare = Callable[[Image.Image], Tensor]

LONGEST = 1333 / 800
"""Longest side of an image, of the shortest, as torchvision's detectors have it by default."""

MASK_THRESHOLD = 0.5
"""Of the probability that a pixel is of the object, as in Mask R-CNN (arXiv 1703.06870, section 3.1)."""


def sized(head: HeadSpec, size: int) -> dict[str, Any]:
    """Return the options by which a detection head resizes its images to a size.

    Args:
        head: `size` is SSDLite's both sides; of heads with `min_size` and `max_size` it is the shorter side, and the
            longer one is at most 1333 / 800 of it, as torchvision has it.
        size: pixels.

    Raises:
        OptionError: the head has no such options.
    """
    if "size" in head.options:
        return {"size": size}
    if {"min_size", "max_size"} <= set(head.options):
        return {"min_size": size, "max_size": round(size * LONGEST)}
    raise OptionError(
        f"head {head.name!r} takes no size of {size}: it has no option 'size', nor 'min_size' and 'max_size'; "
        "leave the size out"
    )


@dataclass(frozen=True)
class DetectionTask:
    """Boxes around objects of one data set's classes, for models that are called as `DetectionModel` is.

    Args:
        classes: the data set's, without a background.
        first_label: what the model calls the first of them: 1 where its label 0 is the background, else 0.
        preprocessing: the model's, which resizes and normalises by itself.
        augmentation: `scale` is the least area of the crops of SSD (arXiv 1512.02325, section 2.2), which keep some
            object, and a `policy` is its distortion of colours.
        masks: whether the model also finds the masks of objects, and learns from them.
    """

    classes: tuple[str, ...]
    first_label: int
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    masks: bool = False

    class_measure = "AP"
    counted = "objects"

    def training_transform(self) -> Transform:
        """Return crops that keep objects, mirroring and colours, as far as they are wanted. Ignored objects go."""
        least = sqrt(self.augmentation.scale)
        crop = v2.RandomIoUCrop(min_scale=least) if least < 1 else None
        colours = [v2.RandomPhotometricDistort()] if self.augmentation.policy != "none" else []
        vary = v2.Compose(
            [v2.RandomHorizontalFlip(self.augmentation.flip), *colours, v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
        )
        return partial(_varied, task=self, crop=crop, vary=vary, prepare=normalised(self.preprocessing))

    def judging_transform(self) -> Transform:
        """Return the image as the model wants it, and all objects; "iscrowd" is 1 for those that are ignored."""
        return partial(_unvaried, task=self, prepare=compose(self.preprocessing))

    def collate(self, samples: Sequence[tuple[Any, Any]]) -> tuple[list[Tensor], list[Target]]:
        """Return a list of images (C, H, W), and one of targets."""
        return [image for image, _ in samples], [target for _, target in samples]

    def loss(self, model: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """Return the sum of the model's losses, which torchvision's detectors average over the batch."""
        return torch.stack(list(model(images, targets).values())).sum()

    def predict(self, model: nn.Module, images: Sequence[Tensor]) -> list[Target]:
        """Return "boxes" (M, 4), "labels" (M,), "scores" (M,), and "masks" (M, 1, H, W) where there are some."""
        return cast("list[Target]", model(images))

    def judging_loss(self, outputs: Any, targets: Any) -> None:
        """Return None: torchvision's detectors have losses in training only."""

    def measuring(self, device: torch.device) -> _MeasuringBoxes:
        """Return what counts mAP, on the CPU wherever the model is: COCO's matching is done there."""
        return _MeasuringBoxes(self)


def _varied(
    image: Image.Image,
    found: Boxes,
    *,
    task: DetectionTask,
    crop: v2.RandomIoUCrop | None,
    vary: v2.Compose,
    prepare: Prepare,
) -> tuple[Tensor, Target]:
    image = convert_mode(image, _mode(task.preprocessing))
    kept = ~found.ignored
    target: Target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(found.boxes[kept]).reshape(-1, 4), format="XYXY", canvas_size=(image.height, image.width)
        ),
        "labels": torch.tensor(found.labels[kept]) + task.first_label,
    }
    if found.masks is not None:
        target["masks"] = tv_tensors.Mask(torch.tensor(found.masks[kept]))
    # Where there is nothing to keep, or no pixel to spare, no crop is found.
    if crop is not None and kept.any() and min(image.size) * crop.min_scale >= 1:
        image, target = crop(image, target)
    image, target = vary(image, target)
    return prepare(image), target


def _unvaried(image: Image.Image, found: Boxes, *, task: DetectionTask, prepare: Prepare) -> tuple[Tensor, Target]:
    target = {
        "boxes": torch.tensor(found.boxes).reshape(-1, 4),
        "labels": torch.tensor(found.labels) + task.first_label,
        "iscrowd": torch.tensor(found.ignored).long(),
    }
    if found.masks is not None:
        target["masks"] = torch.tensor(found.masks)
    return prepare(image), target


def _mode(preprocessing: Preprocessing) -> str:
    return "L" if len(preprocessing.mean) == 1 else "RGB"


class _MeasuringBoxes:
    """What `DetectionTask.measuring` returns."""

    def __init__(self, task: DetectionTask) -> None:
        self._task = task
        self._metric = self._empty()

    def update(self, outputs: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in predictions and targets of some images."""
        self._metric.update([self._comparable(found) for found in outputs], [_on_cpu(target) for target in targets])

    def compute(self) -> Judgement:
        """Judge what all processes took in."""
        whole = self._gathered()
        result = whole.compute()
        boxes, masks = ("bbox_", "segm_") if self._task.masks else ("", "")
        scores = {
            "mAP": _score(result[f"{boxes}map"]),
            "mAP@0.5": _score(result[f"{boxes}map_50"]),
            "mAP@0.75": _score(result[f"{boxes}map_75"]),
        }
        if self._task.masks:
            scores["mask mAP"] = _score(result[f"{masks}map"])
        # Metrics squeeze what has one element, and without a single image there is no result by class.
        labels = result["classes"].reshape(-1).tolist()
        precisions = dict(zip(labels, result[f"{boxes}map_per_class"].reshape(-1), strict=True)) if labels else {}
        counts = self._counts(whole)
        return Judgement(
            scores,
            tuple(
                ClassScore(name, int(counts[label]), _score(precisions.get(label, -1)))
                for label, name in enumerate(self._task.classes, self._task.first_label)
            ),
        )

    def _counts(self, metric: MeanAveragePrecision) -> Tensor:
        """Return how many objects of each of the model's labels count."""
        state: Mapping[str, Any] = metric.metric_state
        images = zip(state["groundtruth_labels"], state["groundtruth_crowds"], strict=True)
        objects = [labels[crowds == 0] for labels, crowds in images]
        labels = torch.cat([torch.zeros(0, dtype=torch.int64), *objects])
        return labels.bincount(minlength=self._task.first_label + len(self._task.classes))

    def _comparable(self, found: Target) -> Target:
        comparable = _on_cpu({name: found[name] for name in ("labels", "boxes", "scores")})
        if self._task.masks:
            comparable["masks"] = (found["masks"][:, 0] > MASK_THRESHOLD).byte().cpu()
        return comparable

    def _empty(self) -> MeanAveragePrecision:
        kinds: Any = ("bbox", "segm") if self._task.masks else "bbox"
        metric = MeanAveragePrecision(
            iou_type=kinds, class_metrics=True, backend="faster_coco_eval", sync_on_compute=False
        )
        # SSDLite and RetinaNet return up to 300 boxes; COCO's measure takes the best 100.
        metric.warn_on_many_detections = False
        # A metric that took in nothing would warn, and a process may have had no image.
        metric.update([], [])
        return metric

    def _gathered(self) -> MeanAveragePrecision:
        """Return a metric that took in what those of all processes did.

        torchmetrics gathers these states tensor by tensor, and waits for ever where processes had different numbers of
        images.
        """
        parts: list[Mapping[str, Any]] = [self._metric.metric_state]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [{}] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self._metric.metric_state)
        whole = self._empty()
        for name in self._metric.metric_state:
            setattr(whole, name, [entry for part in parts for entry in part[name]])
        return whole


def _on_cpu(tensors: Target) -> Target:
    # Mixed precision leaves boxes and scores in formats that numpy has not.
    return {
        name: values.cpu().float() if values.is_floating_point() else values.cpu() for name, values in tensors.items()
    }


def _score(value: Any) -> float:
    """Return a score of torchmetrics, NaN for its -1: there was nothing to find."""
    return nan if value < 0 else float(value)
