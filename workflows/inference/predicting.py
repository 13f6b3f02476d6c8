"""Predict the class of each image, the objects in it, or the class of each pixel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap.specs.class_names import class_names
from featuretap.specs.preprocessing import PICTURE_MODES, Preprocessing, check_channels
from featuretap.support.errors import ImageError, OptionError, WeightsError
from featuretap.support.images import convert_mode, write_picture
from featuretap.workflows.inference.predictions import (
    BoxPrediction,
    ClassPrediction,
    ClassScore,
    HeadPrediction,
    PixelPrediction,
    PredictedImage,
    Prediction,
    SeveralPredictions,
    draw_prediction,
)
from featuretap.workflows.inference.predictor import Predictor, predicting_heads, task_of
from featuretap.workflows.inference.sources import ImageSource

if TYPE_CHECKING:
    from torch import nn

MAXIMUM_RATIO = 8
"""Maximum aspect ratio. Images beyond it are cropped or squeezed."""

MAXIMUM_PIXELS = 8_000_000
"""Maximum number of pixels in a batch of uncropped images. Larger batches would need many gigabytes."""

MAXIMUM_PIXELS_READ = 2**26
"""Number of pixels, at the original size, after which no more images are read into the same batch."""


def predict_sources(
    model: Predictor | nn.Module,
    images: Iterable[tuple[ImageSource, Image.Image | ImageError]],
    pictures: Mapping[ImageSource, Path],
    *,
    batch_size: int,
    top: int,
    threshold: float,
) -> Iterator[PredictedImage | ImageError]:
    """Predict images, draw their pictures, and report unreadable ones; see `predict_images`.

    Args:
        model: as for `predict_images`.
        images: each image, or the error of reading it.
        pictures: image → file for its picture; other images are not drawn.
        batch_size: maximum number of images in memory.
        top: number of classes that a classifier returns.
        threshold: minimum score of a box.

    Yields:
        PredictedImage | ImageError: the prediction for each image, or the error of reading it.

    Raises:
        ImageError: a picture cannot be written.
    """
    predictor, remaining = _as_predictor(model), iter(images)
    while batch := _next_batch(remaining, batch_size):
        read = [(source, image) for source, image in batch if not isinstance(image, ImageError)]
        settings: dict[str, Any] = {"batch_size": batch_size, "top": top, "threshold": threshold}
        found = predict_images(predictor, [image for _, image in read], **settings)
        yield from (image for _, image in batch if isinstance(image, ImageError))
        for (source, image), prediction in zip(read, found, strict=True):
            picture = pictures.get(source)
            if picture:
                write_picture(draw_prediction(image, prediction, predictor.description), picture, parents=True)
            yield PredictedImage(source.name, prediction.as_json(), picture)


def predict_images(
    model: Predictor | nn.Module,
    images: Sequence[Image.Image],
    *,
    batch_size: int = 16,
    top: int = 5,
    threshold: float = 0.5,
) -> list[Prediction]:
    """Predict images.

    Images that are preprocessed to the same size are processed as one batch. A prediction does not depend on the other
    images. Segmenters and detectors squeeze images to an aspect ratio of at most eight.

    Args:
        model: a session, or a model in evaluation mode from `registry.build` or `registry.load`, which is not moved to
            another device.
        images: upright images of any mode.
        batch_size: maximum number of images per batch.
        top: number of classes that a classifier returns.
        threshold: minimum score of a box.

    Returns:
        The predictions, in the order of the images.

    Raises:
        OptionError: featuretap did not build the model, or the model is in training mode, predicts no classes, or takes
            neither one nor three channels.
        WeightsError: the model's output contains NaN or infinity.
    """
    predictor = _as_predictor(model)
    description = predictor.description
    heads = predicting_heads(description)
    if not heads:
        which = f"has the head {description.head!r}" if description.head else "has no head"
        raise OptionError(
            f"{description.name!r} {which} and predicts no classes; use a classifier, a detector or a segmenter"
        )
    preprocessing = description.preprocessing
    classes = {name: class_names(head) for name, head in heads.items()}
    check_channels(preprocessing, repr(description.name))
    predictions: dict[int, Prediction] = {}
    bounded = [_limit_ratio(image, preprocessing) for image in images]
    for places in _batches([image.size for image in bounded], preprocessing, batch_size):
        batch = np.concatenate([predictor.prepare(bounded[place]) for place in places])
        outputs = predictor(batch)
        for index, place in enumerate(places):
            found: dict[str, HeadPrediction] = {}
            for name, head in heads.items():
                of_head = outputs[name] if description.heads else outputs
                output, size = {key: values[index] for key, values in of_head.items()}, images[place].size
                task = task_of(head)
                if task == "classification":
                    found[name] = _class_prediction(output["logits"], classes[name], top)
                elif task == "segmentation":
                    found[name] = _pixel_prediction(output["out"], size, classes[name])
                else:
                    found[name] = _box_prediction(output, size, batch.shape[-2:], classes[name], threshold)
            predictions[place] = SeveralPredictions(found) if description.heads else found[""]
    return [predictions[place] for place in range(len(images))]


def _next_batch(
    images: Iterator[tuple[ImageSource, Image.Image | ImageError]], batch_size: int
) -> list[tuple[ImageSource, Image.Image | ImageError]]:
    """Return the images of the next batch: fewer if they are large, none at the end."""
    batch = []
    pixels = 0
    for source, image in images:
        batch.append((source, image))
        pixels += 0 if isinstance(image, ImageError) else image.width * image.height
        if len(batch) == batch_size or pixels > MAXIMUM_PIXELS_READ:
            break
    return batch


def _as_predictor(model: Predictor | nn.Module) -> Predictor:
    if isinstance(model, Predictor):
        return model
    from featuretap.workflows.inference.modules import ModulePredictor

    return ModulePredictor(model)


def _limit_ratio(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Limit the aspect ratio of an image, since resizing a strip of one pixel's height would exhaust the memory."""
    shorter, longer = sorted(image.size)
    # Keep all pixels inside the crop, even if the image is not resized.
    limit = shorter * max(MAXIMUM_RATIO, ceil((preprocessing.crop or 0) / (preprocessing.resize or 1)))
    if longer <= limit:
        return image
    width, height = (min(side, limit) for side in image.size)
    if not preprocessing.crop:
        picture = convert_mode(image, PICTURE_MODES[len(preprocessing.mean)])
        return picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _batches(sizes: Sequence[tuple[int, int]], preprocessing: Preprocessing, batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of images that have the same size after preprocessing."""
    crop = preprocessing.crop
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        by_size.setdefault((crop, crop) if crop else size, []).append(place)
    for (width, height), places in by_size.items():
        scale = (preprocessing.resize or min(width, height)) / min(width, height)
        limit = batch_size if crop else max(1, min(batch_size, int(MAXIMUM_PIXELS / (width * height * scale**2))))
        for start in range(0, len(places), limit):
            yield places[start : start + limit]


def _class_prediction(logits: NDArray[np.float32], names: Sequence[str], top: int) -> ClassPrediction:
    _check_finite(logits)
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return ClassPrediction(tuple(ClassScore(int(label), names[label], float(probabilities[label])) for label in best))


def _pixel_prediction(logits: NDArray[np.float32], size: tuple[int, int], names: Sequence[str]) -> PixelPrediction:
    _check_finite(logits)
    width, height = size
    best = np.full((height, width), -np.inf, np.float32)
    mask = np.zeros((height, width), np.int64)
    # One class at a time, since all classes at full resolution would need gigabytes.
    for label, small in enumerate(logits):
        values = _resize(small, (height, width))
        mask[values > best] = label
        np.maximum(best, values, out=best)
    found, counts = np.unique(mask, return_counts=True)
    shares = sorted(zip((counts / mask.size).tolist(), found.tolist(), strict=True), key=lambda pair: -pair[0])
    return PixelPrediction(mask, tuple(ClassScore(label, names[label], share) for share, label in shares))


def _box_prediction(
    output: Mapping[str, Any], size: tuple[int, int], frame: Sequence[int], names: Sequence[str], threshold: float
) -> BoxPrediction:
    scores = output["scores"][: output.get("num_detections")]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= threshold]
    width, height = size
    # Undo the squeezing of images with a large aspect ratio.
    boxes = output["boxes"][order] * np.array([width / frame[1], height / frame[0]] * 2, np.float32)
    labels = output["labels"][order]
    masks = None
    if "masks" in output:
        masks = np.empty((len(order), height, width), np.bool_)
        for mask, place in zip(masks, order, strict=True):
            np.greater(_resize(output["masks"][place, 0], (height, width)), 0.5, out=mask)
    return BoxPrediction(boxes, labels, tuple(names[label] for label in labels), scores[order], masks)


def _resize(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a map (h, w) to (H, W), as `F.interpolate(mode="bilinear", align_corners=False)` does."""
    for axis, length in enumerate(size):
        before = values.shape[axis]
        places = ((np.arange(length) + 0.5) * (before / length) - 0.5).clip(0, before - 1)
        lower = places.astype(np.intp)
        upper = np.minimum(lower + 1, before - 1)
        weights = (places - lower).astype(np.float32)
        start = values.take(lower, axis)
        values = start + (values.take(upper, axis) - start) * np.expand_dims(weights, 1 - axis)
    return values


def _check_finite(logits: NDArray[np.float32]) -> None:
    if not np.isfinite(logits).all():
        raise WeightsError(
            "the model's output contains NaN or infinity; check the weights with featuretap inspect --finite"
        )
