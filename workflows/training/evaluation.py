"""Judging weights by a data set, without training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from featuretap.specs.description import Description
from featuretap.support.errors import DataError, TrainingError
from featuretap.support.progress import bar
from featuretap.workflows.datasets.checks import check_readable
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data
from featuretap.workflows.training.judging import judge
from featuretap.workflows.training.loaders import judging_loader
from featuretap.workflows.training.models import finds_masks, first_label, head_of, make_task
from featuretap.workflows.training.processes import accelerated, first_alone, together
from featuretap.workflows.training.reports.writing import write_judgement
from featuretap.workflows.training.tasks.task import Augmentation, Judgement, Task

__all__ = ["Part", "evaluate"]

Part = Literal["val", "train", "all"]


def evaluate(
    model: nn.Module,
    source: str,
    *,
    origin: str = "the model",
    part: Part = "val",
    batch_size: int = 32,
    workers: int = 0,
    val_fraction: float = 0.2,
    seed: int = 0,
    download_to: Path | None = None,
    out: Path | None = None,
) -> tuple[Judgement, Task, bool]:
    """Judge a model by a data set, in all processes together, each image once.

    Args:
        model: of featuretap, with a head.
        source: the data set, as for training.
        origin: what messages call the model.
        part: which images: those to judge by, those to learn from, or all.
        batch_size: images at a time, in each process.
        workers: processes that read, for each that judges.
        val_fraction: as it was in training, where the data does not say which images are to judge by.
        seed: likewise.
        download_to: folder of torchvision's data sets.
        out: folder for tables and pictures; None for none.

    Returns:
        the judgement, the task, and whether this process is the one of several that speaks for all.

    Raises:
        HeadError: the model has no head that is judged here.
        DataError: the data cannot be used, or has other classes than the model.
        TrainingError: `out` cannot be made.
    """
    head = head_of(model, origin)
    said, masks = model.description, finds_masks(model)
    assert isinstance(said, Description)
    with accelerated() as accelerator:
        first, processes = accelerator.is_main_process, accelerator.num_processes
        opening = partial(
            open_data,
            source,
            head.task,  # type: ignore[arg-type]
            val_fraction=val_fraction,
            seed=seed,
            download_to=download_to,
            masks=masks,
        )
        data = first_alone(accelerator, opening)
        _check_classes(said, data, origin, first_label(head))
        samples = {"val": data.val, "train": data.train, "all": data.train + data.val}[part]
        with together(accelerator):
            if first:
                _make(out)
                with bar("checking images", len(data.train) + len(data.val), shown=True) as report:
                    check_readable(data, lambda done: report(1))
        task = make_task(head, said.preprocessing, data.classes, Augmentation(), 0.0, masks=masks)
        model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = judging_loader(task, samples, batch_size, workers, (accelerator.process_index, processes))
        with bar("judging", len(samples) // processes, shown=first) as report:
            judgement = judge(accelerator, task, model, batches, report)
    if out is not None and first:
        write_judgement(out, model.cpu(), task, data.classes, samples, judgement)
    return judgement, task, first


def _check_classes(said: Description, data: DataSet, origin: str, first: int) -> None:
    known = (said.num_classes or 0) - first
    if len(data.classes) != known:
        raise DataError(
            f"the data has {len(data.classes)} classes, and {origin} {known}; judge it by its own kind of data"
        )
    if isinstance(said.classes, str):
        return
    for place, (theirs, ours) in enumerate(zip(data.classes, said.classes[first:], strict=True)):
        if theirs != ours:
            raise DataError(
                f"class {place} of the data is {theirs!r}, and of {origin} {ours!r}; name the classes as in training"
            )


def _make(out: Path | None) -> None:
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make the folder {str(out)!r}: {error.strerror or error}") from error
