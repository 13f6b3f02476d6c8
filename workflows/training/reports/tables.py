"""How good predictions are for each class, as a table for people and as a file."""

from __future__ import annotations

import csv
import io
from math import isnan
from pathlib import Path

from featuretap.support.atomic_write import replace_files
from featuretap.workflows.training.tasks.task import ClassScore, Judgement, Task

__all__ = ["per_class_rows", "write_per_class"]

MOST = 20
"""Classes that fit on a screen. Of more, as many are shown altogether: half of them the worst, half the best."""


def per_class_rows(judgement: Judgement, task: Task) -> list[tuple[str, ...]]:
    """Return the rows of a table to print: class, count, score.

    Up to twenty classes come in their own order; of more, the ten worst and the ten best, the worst first. A class
    without a score, since it did not occur, has a dash and is neither.
    """
    classes = judgement.per_class
    if len(classes) <= MOST:
        return [*map(_row, classes)]
    ranked = sorted((each for each in classes if not isnan(each.score)), key=lambda each: each.score)
    if len(ranked) <= MOST:
        return [*map(_row, ranked)]
    half = MOST // 2
    between = (f"… {len(ranked) - MOST} between", "", "")
    return [*map(_row, ranked[:half]), between, *map(_row, ranked[-half:])]


def write_per_class(judgement: Judgement, task: Task, path: Path) -> None:
    """Write every class with its count and score as CSV, in their own order; the score of a class without one is empty.

    Raises:
        WeightsError: the disk does not take it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("class", task.counted, task.class_measure))
    writer.writerows(
        (each.name, each.occurrences, "" if isnan(each.score) else repr(each.score)) for each in judgement.per_class
    )
    replace_files({path: text.getvalue().encode()})


def _row(each: ClassScore) -> tuple[str, str, str]:
    return each.name, str(each.occurrences), "–" if isnan(each.score) else f"{each.score:.4f}"
