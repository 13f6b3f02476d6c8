"""What models predict for an image, as data, as JSON and as pictures."""

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
    """A class with its probability, or the fraction of an image's pixels that are of it.

    Attributes:
        label: index of the class.
        name: of the class.
        value: from 0 to 1.
    """

    label: int
    name: str
    value: float


@dataclass(frozen=True)
class ClassPrediction:
    """The class of an image.

    Args:
        ranked: the most probable classes, the best first, with their probabilities.
    """

    ranked: tuple[ClassScore, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the classes as JSON values."""
        return _rated_json("probability", self.ranked)

    def draw_on(self, page: Page, classes: Sequence[str], *, title: str = "", first_colour: int = 0) -> None:
        """Write the names of the classes below the image, with their probabilities."""
        page.add_text([f"{shorten_name(rated.name)}  {rated.value:.3f}" for rated in self.ranked], title=title)


@dataclass(frozen=True)
class BoxPrediction:
    """The objects in an image, the highest score first.

    Args:
        boxes: float32 (M, 4) as x1, y1, x2, y2 in pixels of the image.
        labels: int64 (M,), indices of classes.
        names: of the classes of the boxes.
        scores: float32 (M,) from 0 to 1.
        masks: bool (M, H, W), true where the object is, or None where the model gives no masks.
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

    def draw_on(self, page: Page, classes: Sequence[str], *, title: str = "", first_colour: int = 0) -> None:
        """Draw boxes, names and masks."""
        page.add_boxes(self.boxes, self.labels, self.scores, classes, self.masks, first_colour=first_colour)


@dataclass(frozen=True)
class PixelPrediction:
    """The classes of an image's pixels.

    Args:
        mask: int64 (H, W), the class of each pixel, of the size of the image.
        shares: the classes that occur, with their fraction of the pixels, the largest first.
    """

    mask: NDArray[np.int64]
    shares: tuple[ClassScore, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the classes that occur as JSON values, without the mask."""
        return _rated_json("share", self.shares)

    def draw_on(self, page: Page, classes: Sequence[str], *, title: str = "", first_colour: int = 0) -> None:
        """Colour the pixels by class, and write a legend."""
        page.add_classes(self.mask, classes, title=title, first_colour=first_colour)


HeadPrediction = ClassPrediction | BoxPrediction | PixelPrediction
"""What one head predicts."""


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
    """Return an image with everything that a model predicts for it, boxes above the colours of pixels.

    Args:
        image: RGB.
        prediction: of the model.
        description: of the model, which names the classes.
        text_size: Font size in pixels, or None for one that fits the image.
    """
    page = Page(image, text_size)
    if not isinstance(prediction, SeveralPredictions):
        prediction.draw_on(page, class_names(description))
        return page.finish()
    colours, used = {}, 0
    for name in prediction.heads:
        colours[name] = used
        used += description.heads[name].num_classes or 0
    for name, found in sorted(prediction.heads.items(), key=lambda item: isinstance(item[1], BoxPrediction)):
        found.draw_on(page, class_names(description.heads[name]), title=name, first_colour=colours[name])
    return page.finish()


@dataclass(frozen=True)
class PredictedImage:
    """The prediction for one of many images, and the file of its picture if any.

    Args:
        name: of the image.
        predictions: JSON values for each class or box, by the name of the head where there are several.
        picture: file of the picture, or None.
    """

    name: str
    predictions: list[dict[str, Any]] | dict[str, list[dict[str, Any]]]
    picture: Path | None

    def tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """Return titles, with ">" in front of those of columns that are aligned right, and rows of text.

        They are those of each head under its name, or under an empty name where there is one head.
        """
        by_head = self.predictions if isinstance(self.predictions, dict) else {"": self.predictions}
        return {head: _table_of(predictions) for head, predictions in by_head.items()}

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
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
