"""Detection: boxes per image, evaluated by mAP with torchmetrics and faster-coco-eval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan, sqrt
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from PIL import Image
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision import tv_tensors
from torchvision.transforms import v2

from featuretap.models.transforms import compose, normalize
from featuretap.specs import HeadSpec
from featuretap.support.errors import OptionError
from featuretap.workflows.datasets.data_set import Boxes
from featuretap.workflows.training.tasks.coco_results import count_confusions, list_objects, list_predictions
from featuretap.workflows.training.tasks.task import ClassScore, Detections, Evaluator, Metrics, Task, Transform

Target = dict[str, Tensor]
Prepare = Callable[[Image.Image], Tensor]

MAX_ASPECT = 1333 / 800
"""Maximum ratio of the longer to the shorter side after resizing, the default of torchvision's detectors."""

RECALLS = 101
"""Number of recalls, from 0 to 1, at which COCO's metric samples the precision."""

DETAILS = {
    "mAP small": "map_small",
    "mAP medium": "map_medium",
    "mAP large": "map_large",
    "AR@1": "mar_1",
    "AR@10": "mar_10",
    "AR@100": "mar_100",
    "AR small": "mar_small",
    "AR medium": "mar_medium",
    "AR large": "mar_large",
}
"""COCO metrics that are reported once, not for every epoch → torchmetrics' names."""

MASK_THRESHOLD = 0.5
"""Minimum probability of a pixel in an object mask, as in Mask R-CNN (arXiv 1703.06870, section 3.1)."""


def size_options(head: HeadSpec, size: int) -> dict[str, Any]:
    """Return the options with which a detection head resizes images to `size` pixels.

    The size sets both sides for SSDLite. For heads with `min_size` and `max_size`, it sets the shorter side, and limits
    the longer side to 1333 / 800 of it, as in torchvision.

    Args:
        head: the head.
        size: image size in pixels.

    Returns:
        Option → value.

    Raises:
        OptionError: the head has no options for the image size.
    """
    if "size" in head.options:
        return {"size": size}
    if {"min_size", "max_size"} <= set(head.options):
        return {"min_size": size, "max_size": round(size * MAX_ASPECT)}
    raise OptionError(
        f"head {head.name!r} does not support size={size}: it has neither an option 'size' nor 'min_size' and "
        "'max_size'; leave size out"
    )


@dataclass(frozen=True)
class DetectionTask(Task):
    """Object detection, for models with the interface of `DetectionModel`.

    Training images are cropped as in SSD (arXiv 1512.02325, section 2.2), with at least one object in each crop.
    `augment` adds the photometric distortion of SSD. The model itself resizes and normalizes images.

    Args:
        first_label: the model's label of the first class: 1 if label 0 is the background, else 0.
        masks: whether the model also predicts object masks.
    """

    first_label: int = 1
    masks: bool = False

    class_metric = "AP"
    counted = "objects"
    # torchvision's detectors compute losses only in training mode.
    has_evaluation_loss = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """COCO's mAP, mAP at IoU 0.5 and 0.75, and the mAP of masks if the model predicts masks."""
        return ("mAP", "mAP@0.5", "mAP@0.75", *(("mask mAP",) if self.masks else ()))

    def training_transform(self) -> Transform:
        """Return the transform: random crop with objects, horizontal flip, and photometric distortion, where enabled.

        The transform removes ignored objects.
        """
        min_scale = sqrt(self.crop_scale)
        crop = v2.RandomIoUCrop(min_scale=min_scale) if min_scale < 1 else None
        distortion = [v2.RandomPhotometricDistort()] if self.augment != "none" else []
        transform = v2.Compose(
            [v2.RandomHorizontalFlip(self.flip), *distortion, v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
        )
        return partial(_augment, self, crop, transform, normalize(self.preprocessing))

    def evaluation_transform(self) -> Transform:
        """Return the transform to the model's input and all objects; "iscrowd" is 1 for ignored objects."""
        return partial(_prepare, self, compose(self.preprocessing))

    def loss(self, model: nn.Module, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """Return the sum of the model's losses, which torchvision's detectors average over the batch."""
        return torch.stack(list(model(images, targets).values())).sum()

    def predict(self, model: nn.Module, images: Sequence[Tensor]) -> list[Target]:
        """Return "boxes" (M, 4), "labels" (M,), "scores" (M,) and, if predicted, "masks" (M, 1, H, W) of each image."""
        return cast("list[Target]", model(images))

    def evaluator(self, device: torch.device) -> Evaluator:
        """Return an evaluator of mAP. It runs on the CPU, as COCO's matching does."""
        return _Evaluator(self)


def _augment(
    task: DetectionTask,
    crop: v2.RandomIoUCrop | None,
    transform: v2.Compose,
    prepare: Prepare,
    image: Image.Image,
    objects: Boxes,
) -> tuple[Tensor, Target]:
    image = task.convert_image(image)
    kept = ~objects.ignored
    target: Target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(objects.boxes[kept]).reshape(-1, 4), format="XYXY", canvas_size=(image.height, image.width)
        ),
        "labels": torch.tensor(objects.labels[kept]) + task.first_label,
    }
    if objects.masks is not None:
        target["masks"] = tv_tensors.Mask(torch.from_numpy(objects.masks[kept]))
    # Without an object to keep, or with an image too small to crop, RandomIoUCrop finds no crop.
    if crop is not None and kept.any() and min(image.size) * crop.min_scale >= 1:
        image, target = crop(image, target)
    image, target = transform(image, target)
    return prepare(image), target


def _prepare(task: DetectionTask, prepare: Prepare, image: Image.Image, objects: Boxes) -> tuple[Tensor, Target]:
    target = {
        "boxes": torch.tensor(objects.boxes).reshape(-1, 4),
        "labels": torch.tensor(objects.labels) + task.first_label,
        "iscrowd": torch.tensor(objects.ignored).long(),
    }
    if objects.masks is not None:
        target["masks"] = torch.from_numpy(objects.masks)
    return prepare(image), target


class _Evaluator:
    def __init__(self, task: DetectionTask) -> None:
        self._task = task
        self._metric = self._empty_metric()

    def update(self, outputs: Sequence[Target], targets: Sequence[Target]) -> None:
        self._metric.update([self._prediction(output) for output in outputs], [_on_cpu(target) for target in targets])

    def compute(self) -> Metrics:
        metric, ids = self._gather()
        result = metric.compute()
        boxes = "bbox_" if self._task.masks else ""
        keys = {"mAP": f"{boxes}map", "mAP@0.5": f"{boxes}map_50", "mAP@0.75": f"{boxes}map_75"}
        if self._task.masks:
            keys["mask mAP"] = "segm_map"
        # torchmetrics squeezes tensors of one element, and without images returns no results per class.
        labels = result["classes"].reshape(-1).tolist()
        averages = dict(zip(labels, result[f"{boxes}map_per_class"].reshape(-1), strict=True)) if labels else {}
        counts, first = self._count_objects(metric), self._task.first_label
        per_class = tuple(
            ClassScore(name, int(counts[label]), _score(averages.get(label, -1)))
            for label, name in enumerate(self._task.classes, first)
        )
        details = {f"mask {name}": f"segm_{key}" for name, key in DETAILS.items()} if self._task.masks else {}
        details = {**{name: f"{boxes}{key}" for name, key in DETAILS.items()}, **details}
        # IoU 0.5, objects of any size, and up to 100 boxes per image.
        curves = result[f"{boxes}precision"][0, :, :, 0, -1].T if labels else []
        known = dict(zip(labels, curves, strict=True))
        missing = torch.full((RECALLS,), -1.0)
        precisions = torch.stack([known.get(label, missing) for label in range(first, first + len(per_class))]).numpy()
        return Metrics(
            {name: _score(result[key]) for name, key in keys.items()},
            per_class,
            count_confusions(metric.metric_state, first, len(per_class)),
            details={name: _score(result[key]) for name, key in details.items()},
            precisions=np.where(precisions < 0, nan, precisions).astype(np.float64),
            detections=Detections(
                list_predictions(metric.metric_state, ids, first), list_objects(metric.metric_state, ids, first)
            ),
        )

    def _count_objects(self, metric: MeanAveragePrecision) -> Tensor:
        """Return the number of objects for each label of the model, without ignored objects."""
        state: Mapping[str, Any] = metric.metric_state
        images = zip(state["groundtruth_labels"], state["groundtruth_crowds"], strict=True)
        objects = [labels[crowds == 0] for labels, crowds in images]
        labels = torch.cat([torch.zeros(0, dtype=torch.int64), *objects])
        return labels.bincount(minlength=self._task.first_label + len(self._task.classes))

    def _prediction(self, output: Target) -> Target:
        prediction = _on_cpu({name: output[name] for name in ("labels", "boxes", "scores")})
        if self._task.masks:
            prediction["masks"] = (output["masks"][:, 0] > MASK_THRESHOLD).byte().cpu()
        return prediction

    def _empty_metric(self) -> MeanAveragePrecision:
        kinds: Any = ("bbox", "segm") if self._task.masks else "bbox"
        metric = MeanAveragePrecision(
            iou_type=kinds, class_metrics=True, extended_summary=True, backend="faster_coco_eval", sync_on_compute=False
        )
        # SSDLite and RetinaNet return up to 300 boxes, of which COCO's metric uses the best 100.
        metric.warn_on_many_detections = False
        # torchmetrics warns about a metric without updates, as in a process without samples.
        metric.update([], [])
        return metric

    def _gather(self) -> tuple[MeanAveragePrecision, list[int]]:
        """Return a metric with the states of all processes, and the numbers of its images, counted from 1."""
        # torchmetrics gathers states tensor by tensor, and waits forever if processes have unequal numbers of images.
        parts: list[Mapping[str, Any]] = [self._metric.metric_state]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [{}] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self._metric.metric_state)
        gathered = self._empty_metric()
        for name in self._metric.metric_state:
            setattr(gathered, name, [entry for part in parts for entry in part[name]])
        # Process p of n evaluates images p, p + n, p + 2n, …
        places = [
            (place, number) for number, part in enumerate(parts) for place in range(len(part["detection_labels"]))
        ]
        return gathered, [place * len(parts) + number + 1 for place, number in places]


def _on_cpu(tensors: Target) -> Target:
    # Mixed precision returns boxes and scores in data types that NumPy does not support.
    return {
        name: values.cpu().float() if values.is_floating_point() else values.cpu() for name, values in tensors.items()
    }


def _score(value: Any) -> float:
    """Return a score of torchmetrics, with NaN for -1 (no objects)."""
    return nan if value < 0 else float(value)
