"""Evaluation of a model on a data set."""

import logging
from collections.abc import Callable
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
    """Evaluate a model on a data set, in all processes together, each image once.

    Args:
        model: of featuretap, with a head, or a compiled one, which computes on the CPU.
        source: the data set, as for training.
        origin: what messages call the model.
        part: which images: for validation, for training, or all.
        batch_size: images at a time, in each process.
        workers: processes that read, for each that evaluates.
        val_fraction: as in training, where the data has no validation part.
        seed: as in training.
        download_to: folder of torchvision's data sets.
        data_format: of a folder that can be read as several, as the setting `format`.
        images_root: of images outside the data set, as in training.
        out: folder for tables and pictures; None for none.
        log: called with a line about the data, and for progress where no terminal shows it, in the main process only.
        log_every: seconds between lines of progress; 0 for none.
        quiet: show no progress, log nothing and do not warn, where this is a step of something else.

    Returns:
        the metrics, the task, and whether this is the main process (rank 0).

    Raises:
        HeadError: the model has no head that can be evaluated.
        OptionError: the model was compiled for another number or size of images than those of the data.
        DataError: the data cannot be used, or has classes that the model has not. It may lack some of the model's.
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
            too_few = f"{source!r} has too few images to hold any out of training"
            raise DataError(too_few, hint=Hint("evaluate every image with", "part='all'"))
        with share_failure():
            if is_main:
                try:
                    if out is not None:
                        out.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    problem = error.strerror or error
                    raise TrainingError(f"cannot make the folder {str(out)!r}: {problem}") from error
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
            metrics = compute_metrics(accelerator, task, model, batches, report)
    if is_main and not quiet:
        _report_absent(metrics, task)
    if out is not None and is_main:
        write_detections(out, data.classes, samples, metrics, data.ids)
        write_evaluation(out, model.cpu(), task, data.classes, samples, metrics)
    return metrics, task, is_main


def _check_images(model: CompiledModel, origin: str) -> None:
    """Refuse a compiled model that does not take all images of a data set."""
    crop = model.description.preprocessing.crop
    if model.batch not in (None, 1):
        raise OptionError(
            f"{origin} takes {model.batch} images at a time, and the last batch may have fewer; export it for any "
            "number"
        )
    if model.size not in (None, (crop, crop)):
        assert model.size is not None
        height, width = model.size
        raise OptionError(
            f"{origin} takes images of {height}x{width} pixels only, and the images of a data set have other sizes; "
            "export it for any size"
        )


def _report_absent(metrics: Metrics, task: Task) -> None:
    absent = [repr(each.name) for each in metrics.per_class if not each.occurrences]
    if absent:
        counted = "1 class is" if len(absent) == 1 else f"{len(absent)} classes are"
        logger.warning("%s absent, without %s: %s", counted, task.counted, first_few(absent, 5))
