"""Evaluating a model on a data set, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from featuretap.models.built import description_of
from featuretap.specs.description import Description
from featuretap.support.errors import DataError, TrainingError
from featuretap.support.progress import bar
from featuretap.workflows.datasets.checks import check_readable
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.training.loaders import evaluation_loader
from featuretap.workflows.training.loop import compute_metrics
from featuretap.workflows.training.models import first_label, make_task, open_model_data, spec_of
from featuretap.workflows.training.processes import open_accelerator, run_on_main_first, share_failure
from featuretap.workflows.training.reports.tables import write_evaluation
from featuretap.workflows.training.tasks.task import Metrics, Task

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
) -> tuple[Metrics, Task, bool]:
    """Evaluate a model on a data set, in all processes together, each image once.

    Args:
        model: of featuretap, with a head.
        source: the data set, as for training.
        origin: what messages call the model.
        part: which images: for validation, for training, or all.
        batch_size: images at a time, in each process.
        workers: processes that read, for each that evaluates.
        val_fraction: as in training, where the data has no validation part.
        seed: as in training.
        download_to: folder of torchvision's data sets.
        out: folder for tables and pictures; None for none.

    Returns:
        the metrics, the task, and whether this is the main process (rank 0).

    Raises:
        HeadError: the model has no head that can be evaluated.
        DataError: the data cannot be used, or has other classes than the model.
        TrainingError: `out` cannot be created.
    """
    spec, description = spec_of(model, origin), description_of(model)
    with open_accelerator() as accelerator:
        is_main, processes = accelerator.is_main_process, accelerator.num_processes
        data = run_on_main_first(accelerator, lambda: open_model_data(spec, source, val_fraction, seed, download_to))
        _check_classes(description, data, origin, first_label(spec.head))
        samples = {"val": data.val, "train": data.train, "all": [*data.train, *data.val]}[part]
        with share_failure():
            if is_main:
                try:
                    if out is not None:
                        out.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    problem = error.strerror or error
                    raise TrainingError(f"cannot make the folder {str(out)!r}: {problem}") from error
                with bar("checking images", len(data.train) + len(data.val), shown=True) as report:
                    check_readable(data, report)
        task = make_task(spec, description.preprocessing, data.classes)
        model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = evaluation_loader(task, samples[accelerator.process_index :: processes], batch_size, workers)
        with bar("evaluating", len(samples) // processes, shown=is_main) as report:
            metrics = compute_metrics(accelerator, task, model, batches, report)
    if out is not None and is_main:
        write_evaluation(out, model.cpu(), task, data.classes, samples, metrics)
    return metrics, task, is_main


def _check_classes(description: Description, data: DataSet, origin: str, first: int) -> None:
    known = (description.num_classes or 0) - first
    if len(data.classes) != known:
        raise DataError(
            f"the data has {len(data.classes)} classes, and {origin} {known}; evaluate it on data of its own classes"
        )
    if isinstance(description.classes, str):
        return
    for label, (theirs, ours) in enumerate(zip(data.classes, description.classes[first:], strict=True)):
        if theirs != ours:
            raise DataError(
                f"class {label} of the data is {theirs!r}, and of {origin} {ours!r}; name the classes as in training"
            )
