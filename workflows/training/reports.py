"""Reports of a run: scores per class, and pictures of predictions next to the ground truth."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from itertools import count
from math import isnan
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torchvision.transforms.v2 import functional as F  # noqa: N812 - torchvision's own name for it

from featuretap.models.built import description_of
from featuretap.specs.class_names import class_names
from featuretap.support.atomic_write import replace_files
from featuretap.support.images import convert_mode, write_picture
from featuretap.support.text import one_line
from featuretap.workflows.datasets.data_set import FileIds, Sample, upright_size
from featuretap.workflows.inference.drawing import draw_boxes, draw_classes, draw_text
from featuretap.workflows.inference.predicting import predict_images
from featuretap.workflows.inference.predictor import task_of
from featuretap.workflows.training.plots import draw_confusion, draw_precision_recall
from featuretap.workflows.training.tasks.task import Metrics, Task

CANDIDATES = 1000
"""Maximum number of classified images in which to look for mistakes."""

BATCH = 64
"""Maximum number of images in memory."""

SMALL, LARGE = 160, 400
"""Side of the tiles in pixels: for classification, and for boxes and masks, which need more detail."""

COLUMNS = {"classification": 8, "detection": 4, "segmentation": 6}
THRESHOLD = 0.3
"""Minimum score of a drawn box. It is lower than in `featuretap predict`, to show mistakes."""

MAX_CLASSIFIED, MAX_MISTAKES = 32, 24
"""Number of classified images to draw, and how many of them can be mistakes if there are enough correct ones."""

MAX_DRAWN = 8
"""Number of images to draw boxes or masks of."""

MAX_ROWS = 20
"""Maximum number of classes in a printed table; longer tables show the worst and the best half of this number."""

GREEN, RED = (0, 140, 60), (210, 30, 30)
FRAME, GAP = 4, 6
"""Sizes in pixels."""

FONT_SIZE, FONT_RATIO, LINE = 12, 20, 1.4
"""Font size of captions: a fraction of a tile's side, but at least 12 pixels. A line is 1.4 times as high."""

MINIMUM_WIDTH = 160
"""Minimum width of the caption below an image."""

Color = tuple[int, int, int]
Line = tuple[str, str]
"""A text that is cut off if it is too long, and an ending that is always kept."""


def draw_predictions(model: nn.Module, samples: Sequence[Sample], classes: Sequence[str], path: Path) -> None:
    """Draw images with a model's predictions, and write a PNG to `path`.

    For classifiers, up to 1,000 evenly spaced images are classified. Mistakes come first, in red and the most confident
    first, with the true class above the predicted class; some correct predictions follow in green. For detectors and
    segmenters, eight evenly spaced images are drawn, with ground truth and prediction side by side.

    Args:
        model: the model.
        samples: images to draw from.
        classes: classes of the data set.
        path: file to write.
    """
    training, description = model.training, description_of(model)
    model.eval()
    names, task = class_names(description), task_of(description)
    indices = _spread(len(samples), CANDIDATES if task == "classification" else MAX_DRAWN)
    predictions: list[Any] = []
    for start in range(0, len(indices), BATCH):
        images = [samples[index].read()[0] for index in indices[start : start + BATCH]]
        predictions += predict_images(model, images, top=1, threshold=THRESHOLD)
    model.train(training)
    predicted = [(samples[index], prediction) for index, prediction in zip(indices, predictions, strict=True)]
    if task == "classification":
        tiles = _classification_tiles(predicted, classes)
    elif task == "detection":
        offset = len(names) - len(classes)
        tiles = [tile for pair in predicted for tile in _box_tiles(*pair, names, offset)]
    else:
        tiles = [tile for pair in predicted for tile in _mask_tiles(*pair, names)]
    write_picture(_arrange(tiles, COLUMNS[task]), path)


def _arrange(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return a white page of tiles; each row is as high as its highest tile, and all columns are equally wide."""
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = max((tile.width for tile in tiles), default=0)
    heights = [max(tile.height for tile in row) for row in rows]
    size = GAP + len(tiles[:columns]) * (width + GAP), GAP + sum(heights) + len(rows) * GAP
    page, top = Image.new("RGB", size, "white"), GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            # Captions of a row are on one line.
            page.paste(tile, (GAP + column * (width + GAP), top + height - tile.height))
        top += height + GAP
    return page


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` evenly spaced indices below `count`."""
    spread = min(count, most)
    return [place * count // spread for place in range(spread)]


def _classification_tiles(predicted: Sequence[tuple[Sample, Any]], classes: Sequence[str]) -> list[Image.Image]:
    """Return a tile for each of the selected images."""
    ranked = [(sample, sample.label or 0, prediction.ranked[0]) for sample, prediction in predicted]
    correct = [each for each in ranked if each[2].label == each[1]]
    wrong = sorted((each for each in ranked if each[2].label != each[1]), key=lambda each: -each[2].value)
    mistakes = wrong[: max(MAX_MISTAKES, MAX_CLASSIFIED - len(correct))]
    successes = [correct[place] for place in _spread(len(correct), MAX_CLASSIFIED - len(mistakes))]
    tiles = []
    for sample, truth, best in (*mistakes, *successes):
        is_wrong, score = best.label != truth, f" {best.value:.2f}"
        wrong_lines = (f"true: {classes[truth]}", ""), (f"pred: {best.name}", score)
        lines = wrong_lines if is_wrong else ((best.name, score), ("", ""))
        tiles.append(_tile(convert_mode(sample.read()[0], "RGB"), SMALL, lines, RED if is_wrong else GREEN))
    return tiles


def _box_tiles(sample: Sample, prediction: Any, names: Sequence[str], offset: int) -> list[Image.Image]:
    """Return two tiles: the ground truth without ignored objects, and the predictions."""
    image, truth = sample.read()
    image = convert_mode(image, "RGB")
    kept = ~truth.ignored
    masks = None if truth.masks is None else truth.masks[kept]
    true = draw_boxes(image, truth.boxes[kept], truth.labels[kept] + offset, None, names, masks)
    found = draw_boxes(image, prediction.boxes, prediction.labels, prediction.scores, names, prediction.masks)
    return [
        _tile(true, LARGE, [(f"{Path(sample.name).name}: ground truth", "")]),
        _tile(found, LARGE, [(f"prediction (score ≥ {THRESHOLD})", "")]),
    ]


def _mask_tiles(sample: Sample, prediction: Any, names: Sequence[str]) -> list[Image.Image]:
    """Return three tiles: the image, the ground truth mask, and the predicted mask."""
    image, truth = sample.read()
    image = convert_mode(image, "RGB")
    tiles = {
        Path(sample.name).name: draw_text(image, []),
        "ground truth": draw_classes(image, truth, names),
        "prediction": draw_classes(image, prediction.mask, names),
    }
    # Legends differ in height. Padding keeps the photograph at the same place in all three tiles.
    width, height = (max(sides) for sides in zip(*(tile.size for tile in tiles.values()), strict=True))
    padded = [F.pad(tile, [0, 0, width - tile.width, height - tile.height], 255) for tile in tiles.values()]
    return [_tile(tile, LARGE, [(line, "")]) for line, tile in zip(tiles, padded, strict=True)]


def _tile(image: Image.Image, side: int, lines: Sequence[Line], color: Color | None = None) -> Image.Image:
    """Return an image with lines of text below it, on white.

    Args:
        image: the image; it is shrunk to a longer side of `side` pixels, or enlarged by an integer factor without blur.
        side: size in pixels.
        lines: texts, which are cut off if they are too long, each with an ending that is kept.
        color: color of the text and of a frame around the image; None for black text and no frame.

    Returns:
        The tile.
    """
    image = _fit(image, side)
    width = max(image.width, MINIMUM_WIDTH)
    font_size = max(FONT_SIZE, side // FONT_RATIO)
    line_height = round(LINE * font_size)
    caption = image.height + 2 * FRAME
    tile = Image.new("RGB", (width + 2 * FRAME, caption + len(lines) * line_height), "white")
    left = FRAME + (width - image.width) // 2
    pen = ImageDraw.Draw(tile)
    if color is not None:
        pen.rectangle((left - FRAME, 0, left + image.width + FRAME - 1, caption - 1), fill=color)
    tile.paste(image, (left, FRAME))
    # DejaVu Sans has more characters than Pillow's built-in font.
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", font_size)
    for number, (text, ending) in enumerate(lines):
        line = one_line(text)
        cut = line
        while cut and pen.textlength((cut if cut == line else f"{cut}…") + ending, font=font) > width:
            cut = cut[:-1]
        shown = (cut if cut == line else f"{cut}…") + ending
        pen.text((FRAME, caption + number * line_height), shown, fill=color or "black", font=font)
    return tile


def _fit(image: Image.Image, side: int) -> Image.Image:
    longer = max(image.size)
    if longer > side:
        width, height = (max(1, round(length * side / longer)) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    factor = side // longer
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def write_evaluation(
    folder: Path, model: nn.Module, task: Task, classes: Sequence[str], samples: Sequence[Sample], metrics: Metrics
) -> None:
    """Write metrics, tables and pictures of an evaluation into an existing folder.

    The files are `metrics.json`, `per-class.csv` and `predictions.png`, plus `confusion.png` and `precision-recall.png`
    if the metrics contain these.

    Args:
        folder: folder to write to.
        model: the model, for predictions.
        task: task of the model.
        classes: classes of the data set.
        samples: evaluated samples.
        metrics: metrics on the samples.
    """
    values = {name: None if isnan(value) else value for name, value in {**metrics.scores, **metrics.details}.items()}
    replace_files({folder / "metrics.json": json.dumps(values, indent=2).encode()})
    write_per_class(metrics, task, folder / "per-class.csv")
    if metrics.confusion is not None:
        names = classes if len(metrics.confusion) == len(classes) else (*classes, "background")
        draw_confusion(metrics.confusion, names, folder / "confusion.png")
    if metrics.precisions is not None:
        draw_precision_recall(metrics.precisions, classes, folder / "precision-recall.png")
    draw_predictions(model, samples, classes, folder / "predictions.png")


def write_detections(
    folder: Path,
    classes: Sequence[str],
    samples: Sequence[Sample],
    metrics: Metrics,
    ids: Mapping[str, FileIds] = MappingProxyType({}),
) -> None:
    """Write a detector's `predictions.json` (COCO results) and `objects.json` (COCO annotations, the ground truth).

    Images and categories keep the ids of the annotation file. Without such ids, or if the samples come from files with
    contradicting ids, they are numbered from 1 in the order of the samples and the classes.

    Args:
        folder: folder to write to.
        classes: classes of the data set.
        samples: evaluated samples.
        metrics: metrics on the samples; without detections, nothing is written.
        ids: path of an image → ids in its annotation file, as in `DataSet.ids`.
    """
    if metrics.detections is None:
        return
    images, categories = _find_ids(classes, [ids.get(sample.name) for sample in samples])

    def rename(entry: Mapping[str, Any]) -> dict[str, Any]:
        image, category = images[entry["image_id"] - 1], categories[entry["category_id"] - 1]
        return {**entry, "image_id": image, "category_id": category}

    sizes = [(sample.name, *upright_size(sample.name)) for sample in samples]
    objects = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, (name, width, height) in zip(images, sizes, strict=True)
        ],
        "categories": [{"id": number, "name": name} for number, name in zip(categories, classes, strict=True)],
        "annotations": list(map(rename, metrics.detections.objects)),
    }
    contents = {"predictions.json": list(map(rename, metrics.detections.predictions)), "objects.json": objects}
    replace_files({folder / name: json.dumps(content).encode() for name, content in contents.items()})


def _find_ids(classes: Sequence[str], found: Sequence[FileIds | None]) -> tuple[Sequence[int], Sequence[int]]:
    """Return the ids of images and the ids of classes."""
    known = [each for each in found if each is not None]
    images, numbers = [each.image for each in known], known[0].classes if known else {}
    if len(set(images)) < len(found) or any(each.classes != numbers for each in known):
        return range(1, len(found) + 1), range(1, len(classes) + 1)
    # The model may have classes that are missing in the annotation file.
    others = count(max(numbers.values()) + 1)
    return images, [numbers[name] if name in numbers else next(others) for name in classes]


def per_class_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """Return the rows of a table to print: class, count, score, and further columns.

    Up to 20 classes are listed in the order of the data set. With more, the table has the ten worst and the ten best
    classes, the worst first, without classes that have no score.
    """
    classes = metrics.per_class
    rows = [
        (each.name, str(each.occurrences), *(_format_score(value, each.occurrences) for value in values))
        for each, *values in zip(
            classes, (each.score for each in classes), *metrics.class_columns.values(), strict=True
        )
    ]
    if len(classes) <= MAX_ROWS:
        return rows
    scored = (place for place, each in enumerate(classes) if not isnan(each.score))
    ranked = [rows[place] for place in sorted(scored, key=lambda place: classes[place].score)]
    if len(ranked) <= MAX_ROWS:
        return ranked
    half = MAX_ROWS // 2
    between = (f"… {len(ranked) - MAX_ROWS} more …", *("",) * (len(ranked[0]) - 1))
    return [*ranked[:half], between, *ranked[-half:]]


def write_per_class(metrics: Metrics, task: Task, path: Path) -> None:
    """Write count and scores of every class to the CSV file `path`; a missing score is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("class", task.counted, task.class_metric, *metrics.class_columns))
    scores = [each.score for each in metrics.per_class]
    for each, *values in zip(metrics.per_class, scores, *metrics.class_columns.values(), strict=True):
        writer.writerow((each.name, each.occurrences, *("" if isnan(value) else repr(value) for value in values)))
    replace_files({path: text.getvalue().encode()})


def _format_score(score: float, occurrences: int) -> str:
    missing = "–" if occurrences else "absent"
    return missing if isnan(score) else f"{score:.4f}"
