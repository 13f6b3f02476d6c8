"""The scores of classes as a table, and all reports of a run or an evaluation."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

from torch import nn

from featuretap.support.atomic_write import replace_files
from featuretap.workflows.datasets.data_set import DataSet, Sample
from featuretap.workflows.training.reports.plots import draw_confusion, draw_curves
from featuretap.workflows.training.reports.predictions import draw_predictions
from featuretap.workflows.training.tasks.task import ClassScore, Metrics, Task

MAX_ROWS = 20
"""Classes that fit on a screen; of more, half of the rows are the worst and half the best."""


def write_run(
    folder: Path,
    model: nn.Module,
    task: Task,
    data: DataSet,
    history: Sequence[Mapping[str, float]],
    metrics: Metrics,
) -> None:
    """Write `curves.png`, and what `write_evaluation` writes of the best weights."""
    draw_curves(history, folder / "curves.png")
    write_evaluation(folder, model, task, data.classes, data.val, metrics)


def write_evaluation(
    folder: Path, model: nn.Module, task: Task, classes: Sequence[str], samples: Sequence[Sample], metrics: Metrics
) -> None:
    """Write `per-class.csv`, `confusion.png` where there is a matrix, and `predictions.png` into an existing folder."""
    write_per_class(metrics, task, folder / "per-class.csv")
    if metrics.confusion is not None:
        draw_confusion(metrics.confusion, classes, folder / "confusion.png")
    draw_predictions(model, samples, classes, folder / "predictions.png")


def per_class_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """Return the rows of a table to print: class, count, score.

    Up to twenty classes are in their own order; of more, the ten worst and the ten best, the worst first, without
    classes that have no score.
    """
    classes = metrics.per_class
    if len(classes) <= MAX_ROWS:
        return [*map(_row, classes)]
    ranked = sorted((each for each in classes if not isnan(each.score)), key=lambda each: each.score)
    if len(ranked) <= MAX_ROWS:
        return [*map(_row, ranked)]
    half = MAX_ROWS // 2
    between = (f"… {len(ranked) - MAX_ROWS} between", "", "")
    return [*map(_row, ranked[:half]), between, *map(_row, ranked[-half:])]


def write_per_class(metrics: Metrics, task: Task, path: Path) -> None:
    """Write the count and score of every class as CSV, in their own order; a missing score is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("class", task.counted, task.class_metric))
    writer.writerows(
        (each.name, each.occurrences, "" if isnan(each.score) else repr(each.score)) for each in metrics.per_class
    )
    replace_files({path: text.getvalue().encode()})


def _row(each: ClassScore) -> tuple[str, str, str]:
    return each.name, str(each.occurrences), "–" if isnan(each.score) else f"{each.score:.4f}"
