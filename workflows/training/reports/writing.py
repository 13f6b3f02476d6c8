"""Everything that a run leaves for people to look at, in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from featuretap.workflows.datasets.data_set import DataSet, Samples
from featuretap.workflows.training.reports.confusion import draw_confusion
from featuretap.workflows.training.reports.curves import draw_curves
from featuretap.workflows.training.reports.page import show_predictions
from featuretap.workflows.training.reports.tables import write_per_class
from featuretap.workflows.training.tasks.task import Judgement, Task

__all__ = ["write_judgement", "write_run"]


def write_judgement(
    folder: Path, model: nn.Module, task: Task, classes: Sequence[str], samples: Samples, judgement: Judgement
) -> None:
    """Write `per-class.csv`, `confusion.png` where there is a matrix, and `predictions.png`.

    Args:
        folder: that exists.
        model: whose predictions are drawn.
        task: of the model.
        classes: the data set's.
        samples: that were judged by.
        judgement: of the model.
    """
    write_per_class(judgement, task, folder / "per-class.csv")
    if judgement.confusion is not None:
        draw_confusion(judgement.confusion, classes, folder / "confusion.png")
    show_predictions(model, samples, classes, folder / "predictions.png")


def write_run(
    folder: Path,
    model: nn.Module,
    task: Task,
    data: DataSet,
    history: Sequence[Mapping[str, float]],
    judgement: Judgement,
) -> None:
    """Write what `write_judgement` does of the best weights, and `curves.png`."""
    draw_curves(history, folder / "curves.png")
    write_judgement(folder, model, task, data.classes, data.val, judgement)
