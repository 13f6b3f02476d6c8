"""A page of images that a model was judged by, with what it says of them beside what is true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import nn

from featuretap.support.images import convert_mode
from featuretap.workflows.datasets.data_set import Boxes, Samples
from featuretap.workflows.inference.class_names import class_names
from featuretap.workflows.inference.drawing import draw_boxes, draw_classes, draw_words
from featuretap.workflows.inference.predicting import (
    BoxPrediction,
    ClassPrediction,
    PixelPrediction,
    Prediction,
    Rated,
    predict_images,
    task_of,
)
from featuretap.workflows.training.reports.tiles import arranged, captioned, fitted, save_picture

__all__ = ["show_predictions"]

LOOKED_AT = 1000
"""Images that are looked at for mistakes."""

TOGETHER = 64
"""Images in memory at once."""

SMALL, COLUMNS = 160, 8
LARGE, PAIRS, TRIPLES = 400, 4, 6
"""Pixels of a side of the tiles, and tiles in a row: for classes, and for what has to be looked at more closely."""

DRAWN_FROM = 0.3
"""Score of a box from which it is drawn: lower than in `featuretap predict`, since here it is mistakes that count."""

DRAWN = 8
"""Images for which boxes or pixels are drawn."""

GREEN, RED = (0, 140, 60), (210, 30, 30)


def show_predictions(model: nn.Module, samples: Samples, classes: Sequence[str], path: Path, *, most: int = 32) -> None:
    """Draw images with what a model says of them, as a PNG.

    Classifiers: of up to 1,000 images spread evenly, those that were taken for something else come first, the surest of
    them in front, in red, with what they are above what they were taken for; then some of the others, in green.
    Detectors and segmenters: eight images spread evenly, with truth and prediction side by side.

    Args:
        model: of featuretap, left in the mode that it was in.
        samples: that it was judged by.
        classes: the data set's.
        path: of the picture.
        most: how many images of a classifier are drawn; mistakes are three quarters of them where there are as many.

    Raises:
        WeightsError: the disk does not take the picture, or the weights give no numbers.
    """
    training = model.training
    model.eval()
    names = class_names(model.description)  # type: ignore[arg-type]
    task = task_of(model.description)  # type: ignore[arg-type]
    if task == "classification":
        page = arranged(_classified(model, samples, classes, most), COLUMNS)
    elif task == "detection":
        shown = _said(model, samples, DRAWN)
        page = arranged([tile for _, seen in shown for tile in _boxed(seen, names, len(names) - len(classes))], PAIRS)
    else:
        page = arranged([tile for _, seen in _said(model, samples, DRAWN) for tile in _masked(seen, names)], TRIPLES)
    model.train(training)
    save_picture(page, path)


class _Seen(NamedTuple):
    name: str
    image: Image.Image
    truth: Any
    said: Prediction


class _Guess(NamedTuple):
    place: int
    truth: int
    said: Rated


def _said(model: nn.Module, samples: Samples, most: int) -> Iterator[tuple[int, _Seen]]:
    """Yield images spread evenly, by their places, with what the model says of them."""
    places = _spread(len(samples), most)
    for start in range(0, len(places), TOGETHER):
        part = places[start : start + TOGETHER]
        images, truths = zip(*(samples[index] for index in part), strict=True)
        predictions = predict_images(model, images, top=1, threshold=DRAWN_FROM)
        for index, image, truth, said in zip(part, images, truths, predictions, strict=True):
            yield index, _Seen(Path(samples.name(index)).name, convert_mode(image, "RGB"), truth, said)


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` places among `count`, evenly spread."""
    chosen = min(count, most)
    return [place * count // chosen for place in range(chosen)]


def _classified(model: nn.Module, samples: Samples, classes: Sequence[str], most: int) -> list[Image.Image]:
    """Return a tile for each of the images that are most worth looking at."""
    right: list[_Guess] = []
    wrong: list[_Guess] = []
    for index, seen in _said(model, samples, LOOKED_AT):
        assert isinstance(seen.said, ClassPrediction)
        guess = _Guess(index, seen.truth, seen.said.ranked[0])
        (right if guess.said.label == guess.truth else wrong).append(guess)
    wrong.sort(key=lambda guess: -guess.said.value)
    mistakes = wrong[: max(most * 3 // 4, most - len(right))]
    successes = [right[place] for place in _spread(len(right), most - len(mistakes))]
    return [_guessed(samples, guess, classes) for guess in (*mistakes, *successes)]


def _guessed(samples: Samples, guess: _Guess, classes: Sequence[str]) -> Image.Image:
    image, _ = samples[guess.place]
    # The number first, since long names are cut.
    said = f"{guess.said.value:.2f} {guess.said.name}"
    wrong = guess.said.label != guess.truth
    lines = (classes[guess.truth], f"→ {said}") if wrong else (said, "")
    return captioned(fitted(convert_mode(image, "RGB"), SMALL), SMALL, lines, RED if wrong else GREEN)


def _boxed(seen: _Seen, names: Sequence[str], offset: int) -> list[Image.Image]:
    """Return two tiles: the objects that are there, but for those that are ignored, and those that were found."""
    truth, said = seen.truth, seen.said
    assert isinstance(truth, Boxes)
    assert isinstance(said, BoxPrediction)
    kept = ~truth.ignored
    masks = None if truth.masks is None else truth.masks[kept]
    there = draw_boxes(seen.image, truth.boxes[kept], truth.labels[kept] + offset, None, names, masks)
    found = draw_boxes(seen.image, said.boxes, said.labels, said.scores, names, said.masks)
    return [_large(there, f"truth of {seen.name}"), _large(found, f"prediction, scores from {DRAWN_FROM}")]


def _masked(seen: _Seen, names: Sequence[str]) -> list[Image.Image]:
    """Return three tiles: the image, the classes of its pixels, and those that were predicted."""
    assert isinstance(seen.said, PixelPrediction)
    tiles = {
        seen.name: draw_words(seen.image, []),
        "truth": draw_classes(seen.image, seen.truth, names),
        "prediction": draw_classes(seen.image, seen.said.mask, names),
    }
    # Legends are of any height, and the photograph is to lie at the same place in all three.
    size = tuple(max(sides) for sides in zip(*(tile.size for tile in tiles.values()), strict=True))
    return [_large(_on_white(tile, size), words) for words, tile in tiles.items()]


def _on_white(image: Image.Image, size: tuple[int, ...]) -> Image.Image:
    page = Image.new("RGB", (size[0], size[1]), "white")
    page.paste(image)
    return page


def _large(image: Image.Image, words: str) -> Image.Image:
    return captioned(fitted(image, LARGE), LARGE, [words])
