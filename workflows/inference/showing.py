"""Predictions for people and programs: as a table, as JSON, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from featuretap.support.text import one_line
from featuretap.workflows.inference.drawing import draw_boxes, draw_classes, draw_words
from featuretap.workflows.inference.predicting import BoxPrediction, ClassPrediction, PixelPrediction, Prediction, Rated

__all__ = ["Shown", "as_json", "as_picture", "as_table"]


class Shown(NamedTuple):
    """A table: its columns as (title, side), and its rows."""

    columns: tuple[tuple[str, str], ...]
    rows: list[tuple[str, ...]]


def as_table(prediction: Prediction) -> Shown:
    """Return a prediction as a table, the best or the largest first."""
    if isinstance(prediction, BoxPrediction):
        titles = ("score", "left", "top", "right", "bottom")
        boxes = zip(prediction.names, prediction.scores.tolist(), prediction.boxes.tolist(), strict=True)
        rows = [
            (one_line(name), f"{score:.3f}", *(f"{corner:.1f}" for corner in corners)) for name, score, corners in boxes
        ]
        return Shown((("class", "left"), *((title, "right") for title in titles)), rows)
    number, rated = _rated(prediction)
    return Shown(
        (("class", "left"), (number, "right")),
        [(one_line(one.name), f"{one.value:.3f}") for one in rated],
    )


def as_json(prediction: Prediction) -> list[dict[str, Any]]:
    """Return a prediction as what JSON holds: a table for each class or box. Masks are for pictures."""
    if isinstance(prediction, BoxPrediction):
        boxes = zip(
            prediction.labels.tolist(),
            prediction.names,
            prediction.scores.tolist(),
            prediction.boxes.tolist(),
            strict=True,
        )
        return [{"label": label, "class": name, "score": score, "box": box} for label, name, score, box in boxes]
    number, rated = _rated(prediction)
    return [{"label": one.label, "class": one.name, number: one.value} for one in rated]


def _rated(prediction: ClassPrediction | PixelPrediction) -> tuple[str, tuple[Rated, ...]]:
    if isinstance(prediction, ClassPrediction):
        return "probability", prediction.ranked
    return "share", prediction.shares


def as_picture(image: Image.Image, prediction: Prediction, classes: Sequence[str]) -> Image.Image:
    """Return an RGB image with what is predicted of it, in words, boxes or colours."""
    if isinstance(prediction, BoxPrediction):
        found = prediction.boxes, prediction.labels, prediction.scores
        return draw_boxes(image, *found, classes, prediction.masks)
    if isinstance(prediction, ClassPrediction):
        return draw_words(image, [f"{one.value:.3f}  {one.name}" for one in prediction.ranked])
    return draw_classes(image, prediction.mask, classes)
