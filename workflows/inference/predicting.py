"""What a model says of images, as data: their classes, the boxes in them, or the class of every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from featuretap import registry
from featuretap.models.transforms import check_channels
from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import OptionError, WeightsError
from featuretap.support.images import convert_mode
from featuretap.workflows.inference.class_names import class_names

__all__ = [
    "BoxPrediction",
    "ClassPrediction",
    "PixelPrediction",
    "Prediction",
    "Rated",
    "classes_at",
    "predict_images",
    "task_of",
]

LONGEST = 8
"""Times that an image may be as long as it is wide before a model sees less of it, or sees it squeezed."""

MOST_PIXELS = 8_000_000
"""Of the images of a batch together, where they are not cropped; more would need many gigabytes at once."""


class Rated(NamedTuple):
    """A class with a number: its probability, or the share of an image's pixels that are of it.

    Attributes:
        label: the class's place among the model's.
        name: what it is called.
        value: from 0 to 1.
    """

    label: int
    name: str
    value: float


@dataclass(frozen=True)
class ClassPrediction:
    """What an image is.

    Args:
        ranked: the most probable classes, the best first, with their probabilities.
    """

    ranked: tuple[Rated, ...]


@dataclass(frozen=True)
class BoxPrediction:
    """What is in an image, the surest first.

    Args:
        boxes: float32 (M, 4) as x1, y1, x2, y2 in pixels of the image.
        labels: int64 (M,), places among the model's classes.
        names: of the classes of the boxes.
        scores: float32 (M,) from 0 to 1.
        masks: bool (M, H, W), true where the object is, or None where the model gives no masks.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class PixelPrediction:
    """What the pixels of an image are.

    Args:
        mask: int64 (H, W), the class of each pixel, of the size of the image.
        shares: the classes that occur, with the share of the pixels that are of each, the largest first.
    """

    mask: NDArray[np.int64]
    shares: tuple[Rated, ...]


Prediction = ClassPrediction | BoxPrediction | PixelPrediction


def predict_images(
    model: nn.Module, images: Sequence[Image.Image], *, batch_size: int = 16, top: int = 5, threshold: float = 0.5
) -> list[Prediction]:
    """Return what a model says of each image, in their order.

    Images that are prepared to the same size go through the model together, so that a prediction does not depend on
    the images beside it. Segmenters and detectors see an image that is more than eight times as long as it is wide
    squeezed to that.

    Args:
        model: that `registry.build` or `registry.load` returned, in evaluation. It stays on its device.
        images: upright, of any mode.
        batch_size: how many images go through the model at once, at most.
        top: how many classes a classifier names.
        threshold: the least score of a box.

    Raises:
        OptionError: a model that was not built here or is in training, that names no classes, or whose images
            have neither one nor three channels.
        WeightsError: the model's output is no number.
    """
    said = _described(model)
    task = task_of(said)
    if not task:
        head = f"has the head {said.head!r}" if said.head else "has no head"
        raise OptionError(f"{said.name!r} {head} and names no classes; give a classifier, a detector or a segmenter")
    if model.training:
        raise OptionError("predictions are made in evaluation, and the model is in training; call model.eval() first")
    prepared, names = said.preprocessing, class_names(said)
    check_channels(said)
    predictions: dict[int, Prediction] = {}
    seen = [_bounded(image, prepared) for image in images]
    for places in _batches([image.size for image in seen], prepared, batch_size):
        batch = _prepared(model, [seen[place] for place in places])
        sizes = [images[place].size for place in places]
        with torch.inference_mode():
            if task == "classification":
                found: Sequence[Prediction] = _classes(model(batch), names, top)
            elif task == "segmentation":
                logits = model(batch)["out"]
                found = [_pixels(values, size, names) for values, size in zip(logits, sizes, strict=True)]
            else:
                frames = [image.shape[-2:] for image in batch]
                outputs = zip(model(list(batch)), sizes, frames, strict=True)
                found = [_boxes(output, size, frame, names, threshold) for output, size, frame in outputs]
        predictions.update(zip(places, found, strict=True))
    return [predictions[place] for place in range(len(images))]


def classes_at(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return the most probable class (H, W) of each pixel, of logits (K, h, w) enlarged to a size (H, W)."""
    best = torch.full(tuple(size), -torch.inf, device=logits.device)
    classes = torch.zeros(tuple(size), dtype=torch.int64, device=logits.device)
    # A class at a time: all of them at the size of a photograph would need gigabytes.
    for label, small in enumerate(logits.float()):
        values = F.interpolate(small[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]
        classes[values > best] = label
        best = torch.maximum(best, values)
    return classes


def task_of(description: Description) -> str:
    """Return "classification", "segmentation" or "detection", or "" for a model that names no classes."""
    return registry.default.head(description.head).task if description.head and description.num_classes else ""


def _described(model: nn.Module) -> Description:
    said = getattr(model, "description", None)
    if not isinstance(said, Description):
        raise OptionError(
            f"{type(model).__name__} carries no description; predictions are made by models that registry.build or "
            "registry.load returned"
        )
    return said


def _bounded(image: Image.Image, prepared: Preprocessing) -> Image.Image:
    """Return an image that cannot become gigantic: resizing takes a strip of one pixel's height to 256 or more."""
    shorter, longer = sorted(image.size)
    # What a crop reaches stays, also that of an image that is not resized.
    most = shorter * max(LONGEST, ceil((prepared.crop or 0) / (prepared.resize or 1)))
    if longer <= most:
        return image
    width, height = (min(side, most) for side in image.size)
    if not prepared.crop:
        mode = "L" if len(prepared.mean) == 1 else "RGB"
        return convert_mode(image, mode).resize((width, height), Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _batches(sizes: Sequence[tuple[int, int]], prepared: Preprocessing, batch_size: int) -> Iterator[list[int]]:
    """Yield places of images that have the same size once they are prepared."""
    alike: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        alike.setdefault((prepared.crop, prepared.crop) if prepared.crop else size, []).append(place)
    for (width, height), places in alike.items():
        scale = (prepared.resize or min(width, height)) / min(width, height)
        pixels = width * height * scale**2
        most = batch_size if prepared.crop else max(1, min(batch_size, int(MOST_PIXELS / pixels)))
        for start in range(0, len(places), most):
            yield places[start : start + most]


def _prepared(model: nn.Module, images: Sequence[Image.Image]) -> Tensor:
    transform, device = registry.transforms(model), next(model.parameters()).device
    batch = torch.stack([transform(image) for image in images])
    return batch.to(device, memory_format=torch.channels_last)


def _classes(logits: Tensor, names: Sequence[str], top: int) -> list[ClassPrediction]:
    _check_numbers(logits)
    best = logits.softmax(1).topk(min(top, len(names)))
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [
        ClassPrediction(tuple(Rated(label, names[label], value) for value, label in zip(values, labels, strict=True)))
        for values, labels in rows
    ]


def _pixels(logits: Tensor, size: tuple[int, int], names: Sequence[str]) -> PixelPrediction:
    _check_numbers(logits)
    mask = classes_at(logits, (size[1], size[0])).cpu().numpy()
    found, counts = np.unique(mask, return_counts=True)
    shares = sorted(zip((counts / mask.size).tolist(), found.tolist(), strict=True), key=lambda pair: -pair[0])
    return PixelPrediction(mask, tuple(Rated(label, names[label], share) for share, label in shares))


def _boxes(
    output: dict[str, Any], size: tuple[int, int], frame: Sequence[int], names: Sequence[str], threshold: float
) -> BoxPrediction:
    kept = output["scores"] >= threshold
    order = output["scores"][kept].argsort(descending=True, stable=True)
    found = {name: values[kept][order].cpu() for name, values in output.items()}
    width, height = size
    # Those of an image that was squeezed are stretched again.
    boxes = found["boxes"] * torch.tensor([width / frame[1], height / frame[0]] * 2)
    labels = found["labels"].numpy()
    masks = None
    if "masks" in found:
        shown = found["masks"][:, 0]
        masks = np.zeros((0, height, width), np.bool_) if not len(shown) else (_enlarged(shown, size) > 0.5).numpy()
    return BoxPrediction(
        boxes.numpy(),
        labels,
        tuple(names[label] for label in labels),
        found["scores"].numpy(),
        masks,
    )


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (K, H, W) at the size (width, height) of an image."""
    return F.interpolate(maps[None], size=size[::-1], mode="bilinear", align_corners=False)[0]


def _check_numbers(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise WeightsError(
            "the model's output is no number; its weights hold NaN or infinity, which featuretap inspect --finite names"
        )
