"""Predictions for an image as data, JSON and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap.specs.class_names import class_names
from featuretap.specs.description import Description
from featuretap.support.text import one_line
from featuretap.workflows.inference.drawing import Page, shorten_name


class ClassScore(NamedTuple):
    """A class with its probability, or with its fraction of an image's pixels.

    Attributes:
        label: index of the class.
        name: name of the class.
        value: a value from 0 to 1.
    """

    label: int
    name: str
    value: float


@dataclass(frozen=True)
class ClassPrediction:
    """The class of an image.

    Args:
        ranked: the most probable classes with their probabilities, best first.
    """

    ranked: tuple[ClassScore, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the classes as JSON values."""
        return _rated_json("probability", self.ranked)

    def draw_on(self, page: Page, classes: Sequence[str], *, title: str = "", first_color: int = 0) -> None:
        """Write the class names and probabilities below the image."""
        page.add_text([f"{shorten_name(rated.name)}  {rated.value:.3f}" for rated in self.ranked], title=title)


@dataclass(frozen=True)
class BoxPrediction:
    """The objects in an image, highest score first.

    Args:
        boxes: float32 boxes (M, 4) as x1, y1, x2, y2 in pixels of the image.
        labels: int64 class indices (M,).
        names: class name of each box.
        scores: float32 scores (M,) from 0 to 1.
        masks: bool masks (M, H, W) of the objects, or None if the model returns no masks.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_] | None = None

    def as_json(self) -> list[dict[str, Any]]:
        """Return the boxes as JSON values, without masks."""
        boxes = zip(self.labels.tolist(), self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [{"label": label, "class": name, "score": score, "box": box} for label, name, score, box in boxes]

    def draw_on(self, page: Page, classes: Sequence[str], *, title: str = "", first_color: int = 0) -> None:
        """Draw the boxes, names and masks."""
        page.add_boxes(self.boxes, self.labels, self.scores, classes, self.masks, first_color=first_color)


@dataclass(frozen=True)
class PixelPrediction:
    """The classes of an image's pixels.

    Args:
        mask: int64 class index of each pixel (H, W).
        shares: the classes in the image with their fraction of the pixels, largest first.
    """

    mask: NDArray[np.int64]
    shares: tuple[ClassScore, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the classes in the image as JSON values, without the mask."""
        return _rated_json("share", self.shares)

    def draw_on(self, page: Page, classes: Sequence[str], *, title: str = "", first_color: int = 0) -> None:
        """Color the pixels by class and add a legend."""
        page.add_classes(self.mask, classes, title=title, first_color=first_color)


HeadPrediction = ClassPrediction | BoxPrediction | PixelPrediction
"""The prediction of one head."""


@dataclass(frozen=True)
class SeveralPredictions:
    """The predictions of several heads for an image.

    Args:
        heads: name of the head → its prediction.
    """

    heads: Mapping[str, HeadPrediction]

    def as_json(self) -> dict[str, list[dict[str, Any]]]:
        """Return the predictions of each head as JSON values."""
        return {name: prediction.as_json() for name, prediction in self.heads.items()}


Prediction = HeadPrediction | SeveralPredictions


def draw_prediction(
    image: Image.Image, prediction: Prediction, description: Description, *, text_size: int | None = None
) -> Image.Image:
    """Draw all predictions for an image. Boxes are drawn on top of pixel colors.

    Args:
        image: an RGB image.
        prediction: the model's prediction.
        description: the model's description, with the class names.
        text_size: font size in pixels; None for a size that fits the image.

    Returns:
        The picture.
    """
    page = Page(image, text_size)
    if not isinstance(prediction, SeveralPredictions):
        prediction.draw_on(page, class_names(description))
        return page.finish()
    colors, used = {}, 0
    for name in prediction.heads:
        colors[name] = used
        used += description.heads[name].num_classes or 0
    for name, found in sorted(prediction.heads.items(), key=lambda item: isinstance(item[1], BoxPrediction)):
        found.draw_on(page, class_names(description.heads[name]), title=name, first_color=colors[name])
    return page.finish()


@dataclass(frozen=True)
class PredictedImage:
    """The prediction for one of many images.

    Args:
        name: name of the image.
        predictions: JSON values for each class or box, or head → such values.
        picture: path of the picture, or None.
    """

    name: str
    predictions: list[dict[str, Any]] | dict[str, list[dict[str, Any]]]
    picture: Path | None

    def tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """Return head → column titles and rows of text. The head of a model with one head has an empty name.

        A ">" at the start of a title means that the column is right-aligned.

        Returns:
            The tables.
        """
        by_head = self.predictions if isinstance(self.predictions, dict) else {"": self.predictions}
        return {head: _table_of(predictions) for head, predictions in by_head.items()}

    def as_json(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""
        drawn = {"picture": str(self.picture)} if self.picture else {}
        return {"path": self.name, "predictions": self.predictions, **drawn}


def _table_of(predictions: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    titles: list[str] = []
    rows = []
    for prediction in predictions:
        values = {key: f"{value:.3f}" for key, value in prediction.items() if key not in ("label", "class", "box")}
        box = zip(("left", "top", "right", "bottom"), prediction.get("box", ()), strict=False)
        values |= {side: f"{pixels:.1f}" for side, pixels in box}
        titles = ["class", *(f">{key}" for key in values)]
        rows.append([one_line(prediction["class"]), *values.values()])
    return titles, rows


def _rated_json(title: str, values: Sequence[ClassScore]) -> list[dict[str, Any]]:
    return [{"label": rated.label, "class": rated.name, title: rated.value} for rated in values]
