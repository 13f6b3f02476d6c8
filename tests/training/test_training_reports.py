"""Reports of a run: learning curves, the confusion matrix and the per-class table."""

import csv
from collections.abc import Sequence
from math import nan
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.pictures import has_colour, has_white_edges, read_pixels

from featuretap.registry.errors import WeightsError
from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.training.plots import draw_confusion, draw_curves, draw_precision_recall
from featuretap.workflows.training.reports import per_class_rows, write_per_class
from featuretap.workflows.training.tasks.segmentation import SegmentationTask
from featuretap.workflows.training.tasks.task import ClassScore, Metrics

# Learning curves


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


@pytest.mark.parametrize(("epochs", "loss"), [(1, True), (5, False), (300, True)])
def test_curves_of_any_length_are_drawn_in_full(epochs: int, loss: bool, tmp_path: Path) -> None:
    draw_curves(history(epochs, loss=loss), tmp_path / "curves.png")
    page = read_pixels(tmp_path / "curves.png")
    assert 350 < page.shape[0] < 450
    assert 1100 < page.shape[1] < 1300
    assert has_white_edges(page)


def test_a_nan_metric_is_left_out_of_the_curves(tmp_path: Path) -> None:
    rows = [{**row, "accuracy": nan} for row in history(3)]
    draw_curves(rows, tmp_path / "curves.png")
    draw_curves([*rows, history(4)[-1]], tmp_path / "another.png")
    assert not dashes(read_pixels(tmp_path / "curves.png"))
    assert dashes(read_pixels(tmp_path / "another.png"))


def dashes(page: NDArray[np.uint8]) -> list[int]:
    """Return the columns of an image that contain a dashed gray vertical line."""
    grey = (page.max(-1) == page.min(-1)) & (page.max(-1) > 100) & (page.max(-1) < 200)
    return np.flatnonzero(grey.sum(0) > 150).tolist()


def test_the_best_epoch_is_marked_in_the_panels_of_losses_and_measures(tmp_path: Path) -> None:
    places = []
    for best in (1, 3, 5):
        draw_curves(history(5, best), tmp_path / "curves.png")
        page = read_pixels(tmp_path / "curves.png")
        found = dashes(page)
        panels = sorted({column * 3 // page.shape[1] for column in found})
        assert panels == [0, 1]
        places.append(found[0])
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=2)
    assert places[1] - places[0] > 100


def colours_of(panel: int, page: NDArray[np.uint8]) -> int:
    """Return how many of matplotlib's first four colors appear as lines in one of the three panels."""
    third = page.shape[1] // 3
    part = page[:, panel * third : (panel + 1) * third]
    first = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))
    return sum(bool(has_colour(part, colour).sum() > 20) for colour in first)


def test_a_panel_has_a_line_for_each_of_its_values(tmp_path: Path) -> None:
    draw_curves(history(20), tmp_path / "curves.png")
    page = read_pixels(tmp_path / "curves.png")
    assert [colours_of(panel, page) for panel in range(3)] == [2, 2, 1]
    draw_curves(history(20, loss=False), tmp_path / "curves.png")
    assert colours_of(0, read_pixels(tmp_path / "curves.png")) == 1


# Confusion matrix


@pytest.mark.parametrize("count", [2, 10, 21, 100, 1000])
def test_a_confusion_matrix_of_any_size_is_drawn_in_full(count: int, tmp_path: Path) -> None:
    names = [f"a class with a long name, number {label}" for label in range(count)]
    draw_confusion(np.eye(count, dtype=np.int64) * 7, names, tmp_path / "confusion.png")
    page = read_pixels(tmp_path / "confusion.png")
    assert has_white_edges(page)
    assert 400 < page.shape[0] < 1600
    assert 400 < page.shape[1] < 1700
    # The diagonal has the darkest blue.
    assert has_colour(page, (8, 48, 107)).any()


def cells(page: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return the cell colors (count, count, 3), sampled away from the numbers in the middle."""
    frame = np.argwhere(has_colour(page, (0, 0, 0)).sum(1) > page.shape[1] / 3)
    top, bottom = int(frame.min()), int(frame.max())
    columns = np.argwhere(has_colour(page, (0, 0, 0))[top : bottom + 1].sum(0) >= bottom - top)
    left, right = int(columns.min()), int(columns.max())
    height, width = (bottom - top) / count, (right - left) / count
    return np.array(
        [
            [page[round(top + (row + 0.2) * height), round(left + (column + 0.2) * width)] for column in range(count)]
            for row in range(count)
        ]
    )


def test_rows_are_true_classes_and_cells_are_fractions_of_a_row(tmp_path: Path) -> None:
    matrix = np.array([[30, 30, 0], [0, 2, 0], [0, 0, 0]])
    draw_confusion(matrix, ["a", "b", "c"], tmp_path / "confusion.png")
    found = cells(read_pixels(tmp_path / "confusion.png"), 3).astype(int)
    assert found[1, 1].tolist() == [8, 48, 107]
    assert found[0, 0].tolist() == found[0, 1].tolist()
    empty = found[2, 2].tolist()
    assert found[1, 1].sum() < found[0, 0].sum() < sum(empty)
    assert [found[row, column].tolist() for row, column in ((1, 0), (0, 2), (2, 0))] == [empty] * 3


def test_unusual_class_names_are_drawn_and_nothing_is_cut_off(tmp_path: Path) -> None:
    names = ["日本語", "a $x^2 and a $", "two\nlines", "50 %", "_^{", "", "other"]
    draw_confusion(np.eye(len(names), dtype=np.int64), names, tmp_path / "confusion.png")
    assert has_white_edges(read_pixels(tmp_path / "confusion.png"))


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "confusion.png"
    with pytest.raises(WeightsError) as raised:
        draw_confusion(np.eye(2, dtype=np.int64), ["a", "b"], path)
    assert str(raised.value) == f"cannot write {str(path)!r}: No such file or directory"


# Tables

TASK = SegmentationTask(("a", "b"), Preprocessing())


def metrics(scores: Sequence[float]) -> Metrics:
    rows = (ClassScore(f"class {label}", 10 + label, score) for label, score in enumerate(scores))
    return Metrics({"mIoU": 0.5}, tuple(rows))


def test_a_few_classes_are_printed_in_their_own_order() -> None:
    assert per_class_rows(metrics([0.5, nan, 0.25])) == [
        ("class 0", "10", "0.5000"),
        ("class 1", "11", "–"),
        ("class 2", "12", "0.2500"),
    ]
    assert len(per_class_rows(metrics([0.5] * 20))) == 20


def test_of_many_classes_the_worst_and_the_best_are_printed() -> None:
    scores = [((7 * label) % 31) / 31 for label in range(31)]
    rows = per_class_rows(metrics([*scores, nan]))
    assert len(rows) == 21
    assert rows[10] == ("… 11 more …", "", "")
    shown = [float(row[2]) for row in (*rows[:10], *rows[11:])]
    assert shown == pytest.approx([score / 31 for score in (*range(10), *range(21, 31))], abs=1e-4)
    label = scores.index(min(scores))
    assert rows[0][:2] == (f"class {label}", str(10 + label))


def test_absent_classes_do_not_hide_others_among_many_classes() -> None:
    rows = per_class_rows(metrics([0.9, 0.1, *[nan] * 30]))
    assert [row[0] for row in rows] == ["class 1", "class 0"]


def test_the_file_has_every_class(tmp_path: Path) -> None:
    path = tmp_path / "per-class.csv"
    scores = ClassScore('a, "quoted" one', 3, 1 / 3), ClassScore("Käfer", 0, nan)
    write_per_class(Metrics({}, scores), TASK, path)
    assert path.read_text(encoding="utf-8") == (
        'class,pixels,IoU\n"a, ""quoted"" one",3,0.3333333333333333\nKäfer,0,\n'
    )
    with path.open(encoding="utf-8", newline="") as file:
        assert float(list(csv.reader(file))[1][2]) == 1 / 3


# Precision and recall


@pytest.mark.parametrize("count", [1, 3, 40])
def test_precisions_of_any_number_of_classes_are_drawn_with_their_mean(count: int, tmp_path: Path) -> None:
    precisions = np.linspace(1, 0, 101)[None].repeat(count, 0) ** np.arange(1, count + 1)[:, None]
    draw_precision_recall(precisions, [f"class {label}" for label in range(count)], tmp_path / "plot.png")
    page = read_pixels(tmp_path / "plot.png")
    assert has_white_edges(page)
    assert has_colour(page, (0, 0, 0)).any()


def test_classes_without_objects_have_no_curve(tmp_path: Path) -> None:
    precisions = np.array([np.linspace(1, 0, 101), np.full(101, nan)])
    draw_precision_recall(precisions, ["cat", "dog"], tmp_path / "both.png")
    draw_precision_recall(precisions[:1], ["cat"], tmp_path / "one.png")
    assert (read_pixels(tmp_path / "both.png") == read_pixels(tmp_path / "one.png")).all()
    draw_precision_recall(precisions[1:], ["dog"], tmp_path / "none.png")
    assert has_white_edges(read_pixels(tmp_path / "none.png"))
