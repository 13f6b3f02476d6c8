"""Evaluation of a model on a data set."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featuretap.models.built import description_of
from featuretap.runtimes.compiled import CompiledModel
from featuretap.specs.class_names import class_names
from featuretap.support.errors import DataError, Hint, OptionError, TrainingError
from featuretap.support.progress import bar
from featuretap.support.text import first_few
from featuretap.workflows.datasets.data_set import Part, check_readable
from featuretap.workflows.datasets.formats import describe_part
from featuretap.workflows.training.loop import compute_metrics, make_loader
from featuretap.workflows.training.models import (
    first_label,
    make_task,
    open_model_data,
    spec_of,
    with_model_classes,
)
from featuretap.workflows.training.processes import open_accelerator, run_on_main_first, share_failure
from featuretap.workflows.training.reports import write_detections, write_evaluation
from featuretap.workflows.training.tasks.task import Metrics, Task

__all__ = ["evaluate"]

logger = logging.getLogger("featuretap")


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
    data_format: str | None = None,
    images_root: Path | None = None,
    out: Path | None = None,
    log: Callable[[str], None] = print,
    log_every: float = 60.0,
    quiet: bool = False,
) -> tuple[Metrics, Task, bool]:
    """Evaluate a model on a data set. Several processes share the images, and each image counts once.

    Args:
        model: a featuretap model with a head, or a compiled model, which runs on the CPU.
        source: the data set, in any form that training accepts.
        origin: name of the model in error messages.
        part: images to evaluate on: validation set, training set, or all.
        batch_size: images per batch, in each process.
        workers: data loader workers per process.
        val_fraction: validation fraction used in training, for data without a validation set.
        seed: seed used in training; it determines the validation set.
        download_to: folder for downloaded torchvision data sets.
        data_format: format of a folder, as the setting `format`.
        images_root: folder outside the data set that annotations may load images from.
        out: folder to write tables and pictures to, or None.
        log: called in the main process with a line about the data, and with progress lines if there is no terminal.
        log_every: seconds between progress lines; 0 disables them.
        quiet: show no progress, log nothing and do not warn.

    Returns:
        The metrics, the task, and whether this is the main process (rank 0).

    Raises:
        HeadError: the model has no head that can be evaluated.
        OptionError: the model was compiled for another batch size or image size.
        DataError: the data cannot be used, or has classes that the model does not have. The reverse is allowed.
        TrainingError: `out` cannot be created.
    """
    spec, description = spec_of(model, origin), description_of(model)
    settings: dict[str, Any] = {}
    if isinstance(model, CompiledModel):
        _check_images(model, origin)
        batch_size, settings["cpu"] = model.batch or batch_size, True
    with open_accelerator(**settings) as accelerator:
        is_main, processes = accelerator.is_main_process, accelerator.num_processes
        shown: dict[str, Any] = {"shown": is_main and not quiet, "log": log, "every": log_every}
        opening = source, val_fraction, seed, download_to, data_format, images_root
        first = first_label(spec.head)
        known = class_names(description)[first:]
        data = run_on_main_first(accelerator, lambda: open_model_data(spec, *opening, known=known))
        lines = describe_part(data, part)
        data = with_model_classes(data, description, origin, first)
        samples = {"val": data.val, "train": data.train, "all": [*data.train, *data.val]}[part]
        if not samples:
            too_few = f"{source!r} has too few images for a validation set"
            raise DataError(too_few, hint=Hint("evaluate on all images with", "part='all'"))
        with share_failure():
            if is_main:
                try:
                    if out is not None:
                        out.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    problem = error.strerror or error
                    raise TrainingError(f"cannot create the folder {str(out)!r}: {problem}") from error
                for line in () if quiet else lines:
                    log(line)
                with bar("checking images", len(data.train) + len(data.val), **shown) as report:
                    check_readable(data, report)
        task = make_task(spec, description.preprocessing, data.classes)
        model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = make_loader(
            task, samples[accelerator.process_index :: processes], batch_size, workers, training=False
        )
        with bar("evaluating", len(samples) // processes, **shown) as report:
            metrics = replace(compute_metrics(accelerator, task, model, batches, report), images=len(samples))
    if is_main and not quiet:
        _report_absent(metrics, task)
    if out is not None and is_main:
        write_detections(out, data.classes, samples, metrics, data.ids)
        write_evaluation(out, model.cpu(), task, data.classes, samples, metrics)
    return metrics, task, is_main


def _check_images(model: CompiledModel, origin: str) -> None:
    """Check that a compiled model accepts batches and images of any size that evaluation uses."""
    crop = model.description.preprocessing.crop
    if model.batch not in (None, 1):
        raise OptionError(
            f"{origin} has a fixed batch size of {model.batch}, but the last batch may be smaller; export it for any "
            "batch size"
        )
    if model.size not in (None, (crop, crop)):
        assert model.size is not None
        height, width = model.size
        raise OptionError(
            f"{origin} has a fixed image size of {height}x{width}, but evaluation uses other sizes; export it for any "
            "size"
        )


def _report_absent(metrics: Metrics, task: Task) -> None:
    absent = [repr(each.name) for each in metrics.per_class if not each.occurrences]
    if absent:
        counted = "1 class has" if len(absent) == 1 else f"{len(absent)} classes have"
        logger.warning("%s no %s in this data set: %s", counted, task.counted, first_few(absent, 5))
