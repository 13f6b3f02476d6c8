"""What a run leaves to look at: curves, confusion, tables, and a page of predictions."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from torch import nn

from featuretap.datasets.data_set import IGNORED, Boxes
from featuretap.inference.drawing import colour_of
from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.registry.preprocessing import Preprocessing
from featuretap.training.reports.confusion import draw_confusion
from featuretap.training.reports.curves import draw_curves
from featuretap.training.reports.page import show_predictions
from featuretap.training.reports.tables import per_class_rows, write_per_class
from featuretap.training.reports.tiles import arranged, captioned, fitted
from featuretap.training.tasks.segmentation import SegmentationTask
from featuretap.training.tasks.task import ClassScore, Judgement

GREEN, RED, WHITE = (0, 140, 60), (210, 30, 30), (255, 255, 255)
TILE = 160
"""Pixels of a side of a classified image."""


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def has_white_edges(page: NDArray[np.uint8]) -> bool:
    """Whether nothing reaches the edge of a picture, so that nothing is cut off."""
    return all(bool((edge == 255).all()) for edge in (page[0], page[-1], page[:, 0], page[:, -1]))


def where(page: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return (page == colour).all(-1)


# Curves.


def history(epochs: int, best: int = 1, loss: bool = True) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 2 / epoch,
            "accuracy": 0.9 if epoch == best else 0.5,
            "top-5 accuracy": 0.95,
            **({"loss": 2.2 / epoch} if loss else {}),
            "lr": 1e-3 * (1 - epoch / epochs),
            "seconds": 100.0,
            "images_per_second": 5000.0,
        }
        for epoch in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("epochs", [1, 5, 300])
@pytest.mark.parametrize("loss", [True, False])
def test_curves_of_any_length_are_drawn_whole(epochs: int, loss: bool, tmp_path: Path) -> None:
    draw_curves(history(epochs, loss=loss), tmp_path / "curves.png")
    page = pixels(tmp_path / "curves.png")
    assert 350 < page.shape[0] < 450
    assert 1100 < page.shape[1] < 1300
    assert has_white_edges(page)


def test_a_measure_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    rows = [{**row, "accuracy": nan} for row in history(3)]
    draw_curves(rows, tmp_path / "curves.png")
    draw_curves([*rows, history(4)[-1]], tmp_path / "another.png")
    assert not dashes(pixels(tmp_path / "curves.png"))
    assert dashes(pixels(tmp_path / "another.png"))


def dashes(page: NDArray[np.uint8]) -> list[int]:
    """The columns of a picture with a dashed grey line down a panel."""
    grey = (page.max(-1) == page.min(-1)) & (page.max(-1) > 100) & (page.max(-1) < 200)
    return np.flatnonzero(grey.sum(0) > 150).tolist()


def test_the_best_epoch_is_marked_in_the_panels_of_losses_and_measures(tmp_path: Path) -> None:
    places = []
    for best in (1, 3, 5):
        draw_curves(history(5, best), tmp_path / "curves.png")
        page = pixels(tmp_path / "curves.png")
        found = dashes(page)
        panels = sorted({column * 3 // page.shape[1] for column in found})
        assert panels == [0, 1]
        places.append(found[0])
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=2)
    assert places[1] - places[0] > 100


def colours_of(panel: int, page: NDArray[np.uint8]) -> int:
    """How many of matplotlib's first four colours a third of a picture has lines in."""
    third = page.shape[1] // 3
    part = page[:, panel * third : (panel + 1) * third]
    first = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))
    return sum(bool(where(part, colour).sum() > 20) for colour in first)


def test_a_panel_has_a_line_for_each_of_its_numbers(tmp_path: Path) -> None:
    draw_curves(history(20), tmp_path / "curves.png")
    page = pixels(tmp_path / "curves.png")
    assert [colours_of(panel, page) for panel in range(3)] == [2, 2, 1]
    draw_curves(history(20, loss=False), tmp_path / "curves.png")
    assert colours_of(0, pixels(tmp_path / "curves.png")) == 1


# Confusion.


@pytest.mark.parametrize("count", [2, 10, 21, 100, 1000])
def test_a_matrix_of_any_size_is_drawn_whole(count: int, tmp_path: Path) -> None:
    names = [f"a class with a long name, number {label}" for label in range(count)]
    draw_confusion(np.eye(count, dtype=np.int64) * 7, names, tmp_path / "confusion.png")
    page = pixels(tmp_path / "confusion.png")
    assert has_white_edges(page)
    assert 400 < page.shape[0] < 1600
    assert 400 < page.shape[1] < 1700
    # The diagonal is in the darkest blue.
    assert where(page, (8, 48, 107)).any()


def cells(page: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """(count, count, 3), the colours of the cells a little beside their middles, where no number is."""
    frame = np.argwhere(where(page, (0, 0, 0)).sum(1) > page.shape[1] / 3)
    top, bottom = int(frame.min()), int(frame.max())
    columns = np.argwhere(where(page, (0, 0, 0))[top : bottom + 1].sum(0) >= bottom - top)
    left, right = int(columns.min()), int(columns.max())
    height, width = (bottom - top) / count, (right - left) / count
    return np.array(
        [
            [page[round(top + (row + 0.2) * height), round(left + (column + 0.2) * width)] for column in range(count)]
            for row in range(count)
        ]
    )


def test_rows_are_the_truth_and_each_is_shared_out(tmp_path: Path) -> None:
    matrix = np.array([[30, 30, 0], [0, 2, 0], [0, 0, 0]])
    draw_confusion(matrix, ["a", "b", "c"], tmp_path / "confusion.png")
    found = cells(pixels(tmp_path / "confusion.png"), 3).astype(int)
    assert found[1, 1].tolist() == [8, 48, 107]
    assert found[0, 0].tolist() == found[0, 1].tolist()
    empty = found[2, 2].tolist()
    assert found[1, 1].sum() < found[0, 0].sum() < sum(empty)
    assert [found[row, column].tolist() for row, column in ((1, 0), (0, 2), (2, 0))] == [empty] * 3


@pytest.mark.parametrize("name", ["日本語", "a $x^2 and a $", "two\nlines", "50 %", "_^{", ""])
def test_names_are_drawn_as_they_are_and_break_nothing(name: str, tmp_path: Path) -> None:
    draw_confusion(np.eye(2, dtype=np.int64), [name, "other"], tmp_path / "confusion.png")
    assert has_white_edges(pixels(tmp_path / "confusion.png"))


def test_a_picture_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "confusion.png"
    with pytest.raises(WeightsError) as raised:
        draw_confusion(np.eye(2, dtype=np.int64), ["a", "b"], path)
    assert str(raised.value) == f"cannot write {str(path)!r}: No such file or directory"


# Tables.

TASK = SegmentationTask(("a", "b"), Preprocessing())


def judgement(scores: Sequence[float]) -> Judgement:
    rows = (ClassScore(f"class {label}", 10 + label, score) for label, score in enumerate(scores))
    return Judgement({"mIoU": 0.5}, tuple(rows))


def test_a_few_classes_are_printed_in_their_own_order() -> None:
    assert per_class_rows(judgement([0.5, nan, 0.25]), TASK) == [
        ("class 0", "10", "0.5000"),
        ("class 1", "11", "–"),
        ("class 2", "12", "0.2500"),
    ]
    assert len(per_class_rows(judgement([0.5] * 20), TASK)) == 20


def test_of_many_classes_the_worst_and_the_best_are_printed() -> None:
    scores = [((7 * label) % 31) / 31 for label in range(31)]
    rows = per_class_rows(judgement([*scores, nan]), TASK)
    assert len(rows) == 21
    assert rows[10] == ("… 11 between", "", "")
    shown = [float(row[2]) for row in (*rows[:10], *rows[11:])]
    assert shown == pytest.approx([score / 31 for score in (*range(10), *range(21, 31))], abs=1e-4)
    label = scores.index(min(scores))
    assert rows[0][:2] == (f"class {label}", str(10 + label))


def test_of_many_classes_those_that_do_not_occur_are_no_reason_to_leave_others_out() -> None:
    rows = per_class_rows(judgement([0.9, 0.1, *[nan] * 30]), TASK)
    assert [row[0] for row in rows] == ["class 1", "class 0"]


def test_the_file_has_every_class(tmp_path: Path) -> None:
    path = tmp_path / "per-class.csv"
    scores = ClassScore('a, "quoted" one', 3, 1 / 3), ClassScore("Käfer", 0, nan)
    write_per_class(Judgement({}, scores), TASK, path)
    assert path.read_text(encoding="utf-8") == (
        'class,pixels,IoU\n"a, ""quoted"" one",3,0.3333333333333333\nKäfer,0,\n'
    )
    with path.open(encoding="utf-8", newline="") as file:
        assert float(list(csv.reader(file))[1][2]) == 1 / 3


# Tiles.


def test_small_images_are_enlarged_without_blur() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 5, 3), np.uint8))
    large = fitted(image, 160)
    assert large.size == (100, 160)
    assert np.array_equal(np.asarray(large)[::20, ::20], np.asarray(image))
    assert len(np.unique(np.asarray(large).reshape(-1, 3), axis=0)) == 40


@pytest.mark.parametrize(("size", "shown"), [((600, 400), (160, 107)), ((3000, 1), (160, 1)), ((161, 160), (160, 159))])
def test_large_images_are_shrunk_and_keep_their_shape(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert fitted(Image.new("RGB", size), 160).size == shown


def test_words_that_are_too_long_are_cut_and_end_before_the_edge() -> None:
    image = Image.new("RGB", (160, 80), "blue")
    for line in (
        "a name that is much longer than there is room for on a tile of this size",
        "WWWWWWWWWWWWWWWWWWWWWWWW",
    ):
        tile = np.asarray(captioned(image, 160, [line, line], GREEN))
        words = tile[168:] < 250
        assert words.any(axis=2)[:, 100:160].any()
        assert not words[:, 165:].any()
        assert not words[-1:].any()


def test_tiles_lie_row_by_row() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    page = np.asarray(arranged([Image.new("RGB", (10, 8), colour) for colour in colours], 2))
    assert page.shape == (2 * 14 + 6, 2 * 16 + 6, 3)
    assert [page[10, 10].tolist(), page[10, 26].tolist(), page[24, 10].tolist()] == [list(c) for c in colours]
    assert page[24, 26].tolist() == list(WHITE)


# The page.


@dataclass
class Given:
    """Samples in memory."""

    items: list[tuple[Image.Image, Any]]
    labels: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return self.items[index]

    def name(self, index: int) -> str:
        return f"a/long/way/to/{index}.png"

    def check(self, index: int) -> str:
        return ""


CLASSES = ("one", "two", "three")


def sure_of(model: nn.Module, label: int) -> nn.Module:
    """A classifier or a segmenter that takes everything for one class."""
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():  # type: ignore[union-attr]
            if len(parameter) == len(CLASSES):
                parameter.zero_()
                if name.endswith("bias"):
                    parameter[label] = 3.0
    return model


def classifier(registry: Registry, label: int, channels: int = 3) -> nn.Module:
    model = registry.build("mobilenet_v3_small", num_classes=3, width=0.25, in_channels=channels)
    model.description = replace(model.description, classes=CLASSES)
    return sure_of(model, label)


def frames(page: NDArray[np.uint8]) -> list[str]:
    """The colours of the frames of the tiles, row by row."""
    found = []
    for top in range(6, page.shape[0] - TILE, TILE + 8 + 2 * 17 + 6):
        for left in range(6, page.shape[1] - TILE, TILE + 8 + 6):
            corner = tuple(page[top + 4 + TILE + 2, left + 80].tolist())
            found.append({GREEN: "green", RED: "red", WHITE: "none"}[corner])
    return found


def test_mistakes_come_first_in_red_and_what_is_right_in_green(registry: Registry, tmp_path: Path) -> None:
    truths = [1, 0, 1, 1, 2, 1]
    samples = Given([(Image.new("L", (8, 8), 40 * index), truth) for index, truth in enumerate(truths)])
    model = classifier(registry, 1, channels=1).train()
    show_predictions(model, samples, CLASSES, tmp_path / "page.png")
    assert model.training
    page = pixels(tmp_path / "page.png")
    assert page.shape == (6 + 208, 6 + 6 * 174, 3)
    assert frames(page) == ["red"] * 2 + ["green"] * 4
    middles = [int(page[80, 6 + 84 + 174 * place, 0]) for place in range(6)]
    assert middles == [40, 160, 0, 80, 120, 200]
    assert has_white_edges(page)


def test_photographs_of_any_shape_are_shown_whole(registry: Registry, tmp_path: Path) -> None:
    cat = Image.fromarray(data.chelsea())
    sizes = [(600, 400), (400, 600), (900, 100), (30, 20)]
    samples = Given([(cat.resize(size), index % 3) for index, size in enumerate(sizes)])
    show_predictions(classifier(registry, 0), samples, CLASSES, tmp_path / "page.png")
    page = pixels(tmp_path / "page.png")
    assert frames(page).count("green") == 2
    assert frames(page).count("red") == 2
    assert has_white_edges(page)


@pytest.mark.parametrize(
    ("wrong", "right", "shown"), [(40, 40, (24, 8)), (40, 3, (29, 3)), (5, 40, (5, 27)), (0, 40, (0, 32))]
)
def test_a_page_has_room_for_both(
    wrong: int, right: int, shown: tuple[int, int], registry: Registry, tmp_path: Path
) -> None:
    samples = Given([(Image.new("RGB", (8, 8)), 0)] * wrong + [(Image.new("RGB", (8, 8)), 2)] * right)
    show_predictions(classifier(registry, 2), samples, CLASSES, tmp_path / "page.png")
    found = frames(pixels(tmp_path / "page.png"))
    assert (found.count("red"), found.count("green")) == shown


def test_boxes_are_drawn_in_the_colours_of_the_models_classes(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small", head="ssdlite", num_classes=4, width=0.25, size=96).eval()
    model.description = replace(model.description, classes=("background", *CLASSES))
    boxes = np.array([[50, 100, 150, 200], [210, 220, 390, 390]], np.float32)
    found = Boxes(boxes, np.array([0, 2]), np.array([False, True]))
    samples = Given([(Image.new("RGB", (400, 400), "white"), found)] * 3)
    show_predictions(model, samples, CLASSES, tmp_path / "page.png")
    page = pixels(tmp_path / "page.png")
    # Three pairs: two in the first row, one in the second.
    assert page.shape == (6 + 2 * (408 + 17 + 6), 6 + 4 * 414, 3)
    truth, prediction = page[10:410, 10:410], page[10:410, 424:824]
    # The background is the model's first class; what is ignored is not drawn.
    assert where(truth, colour_of(1))[140:160, 48:53].any()
    assert not where(truth, colour_of(3)).any()
    assert not where(truth, colour_of(0)).any()
    assert (prediction == 255).all()


def test_boxes_that_are_found_are_drawn_beside_the_truth(registry: Registry, tmp_path: Path) -> None:
    model = registry.build(
        "mobilenet_v3_small", head="retinanet", num_classes=3, width=0.25, min_size=64, max_size=64
    ).eval()
    model.description = replace(model.description, classes=CLASSES)
    with torch.no_grad():
        model.head.predictor.classification_head.cls_logits.bias.copy_(torch.tensor([-9.0, 3.0, -9.0]).repeat(9))
    nothing = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    show_predictions(model, Given([(Image.new("RGB", (400, 400)), nothing)]), CLASSES, tmp_path / "page.png")
    page = pixels(tmp_path / "page.png")
    assert not where(page[10:410, 10:410], colour_of(1)).any()
    assert where(page[10:410, 424:824], colour_of(1)).any()


def test_pixels_are_drawn_as_image_truth_and_prediction(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small", head="lraspp", num_classes=3, width=0.25).eval()
    resized = replace(model.description.preprocessing, resize=64)
    model.description = replace(model.description, classes=CLASSES, preprocessing=resized)
    mask = np.zeros((400, 400), np.uint8)
    mask[:, 200:] = 1
    mask[:200, :100] = IGNORED
    samples = Given([(Image.new("RGB", (400, 400)), mask)] * 9)
    show_predictions(sure_of(model, 2), samples, CLASSES, tmp_path / "page.png")
    page = pixels(tmp_path / "page.png")
    # Eight of nine images, two in a row.
    assert page.shape == (6 + 4 * (408 + 17 + 6), 6 + 6 * 414, 3)
    image, truth, prediction = (page[10:410, left : left + 400].astype(int) for left in (10, 424, 838))
    # The photograph is black, and lies at the same place in all three, whatever stands below it.
    black = np.argwhere(image.sum(-1) == 0)
    (top, left), (bottom, right) = black.min(0), black.max(0)
    assert 300**2 < len(black) > 0.99 * (bottom - top + 1) * (right - left + 1)

    def at(tile: Any, row: int, column: int) -> Any:
        """Return the colour at a place of the photograph, of 400×400 pixels."""
        return tile[top + row * (bottom - top) // 400, left + column * (right - left) // 400]

    halves = {tuple(at(truth, 100, column)) for column in (60, 150)} | {tuple(at(truth, 300, x)) for x in (60, 340)}
    first, second, third = (np.array(colour_of(label)) // 2 for label in range(3))
    assert np.abs(at(truth, 200, 300) - second).max() <= 1
    assert np.abs(at(truth, 250, 130) - first).max() <= 1
    assert at(truth, 100, 60).tolist() == [0, 0, 0]
    assert len(halves) == 3
    assert np.abs(at(prediction, 100, 60) - third).max() <= 1
    assert np.abs(at(prediction, 300, 300) - third).max() <= 1
