"""Training runs and evaluation: from settings or a model to weights, a history, tables and pictures."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, broadcast_object_list, set_seed
from timm.utils.distributed import distribute_bn
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from featuretap import registry
from featuretap.models.built import description_of
from featuretap.specs.class_names import class_names
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import DataError, FeaturetapError, Hint, TrainingError
from featuretap.support.progress import bar, end_of_run, format_epoch
from featuretap.support.text import first_few
from featuretap.workflows.datasets.data_set import DataSet, Part, check_readable
from featuretap.workflows.datasets.formats import describe, describe_part
from featuretap.workflows.training import run_folder
from featuretap.workflows.training.configuration import (
    Configuration,
    format_configuration,
    resolve_defaults,
    with_absolute_paths,
)
from featuretap.workflows.training.loop import Trainer, compute_metrics, make_loader, train_epoch
from featuretap.workflows.training.models import (
    build_model,
    first_label,
    make_task,
    open_model_data,
    resolve_model,
    spec_of,
    with_model_classes,
)
from featuretap.workflows.training.optimisation import (
    freeze_through,
    last_frozen,
    make_optimizer,
    make_schedule,
    set_norm_momentum,
)
from featuretap.workflows.training.plots import draw_curves
from featuretap.workflows.training.reports import write_detections, write_evaluation
from featuretap.workflows.training.tasks.task import Metrics, Task

__all__ = ["Result", "evaluate", "train"]

logger = logging.getLogger("featuretap")

Value = TypeVar("Value")


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        folder: of the run.
        epoch: the best, from 1.
        metrics: of that epoch.
        task: of the model.
        is_main: True on the main process (rank 0).
    """

    folder: Path
    epoch: int
    metrics: Metrics
    task: Task
    is_main: bool


def train(configuration: Configuration, *, resume: bool = False, log: Callable[[str], None] = print) -> Result:
    """Train a model.

    Everything random in an epoch follows from the seed and the number of the epoch, so that an interrupted run that is
    resumed gives the same result as an uninterrupted one.

    Args:
        configuration: of the run.
        resume: whether to resume the run in the folder `out`; otherwise the folder has to be new.
        log: called with a line for each epoch, and for progress within it where no terminal shows it, in the main
            process only.

    Returns:
        the folder with `best.safetensors` and `last.safetensors` (both describe themselves), `configuration.toml`,
        `history.csv`, tables, pictures and TensorBoard's logs; and the metrics of the best epoch.

    Raises:
        TrainingError, DataError: the run or its data cannot be used; reported before the first step where possible.
        FeaturetapError: as `registry.build` does.
    """
    _check_precision(configuration)
    folder = run_folder.folder_of(configuration)
    configuration, spec = resolve_model(configuration)
    configuration = with_absolute_paths(configuration)
    with _open_accelerator(**_accelerator_settings(configuration, folder)) as accelerator, ExitStack() as stack:
        is_main = accelerator.is_main_process
        settings = configuration.data, configuration.val_fraction, configuration.seed, configuration.download_to
        where = configuration.format, configuration.images_root
        data = _run_on_main_first(accelerator, lambda: open_model_data(spec, *settings, *where))
        configuration = resolve_defaults(configuration, spec.head.task, mirrors=data.mirrors)
        _check_batches(configuration, data, accelerator.num_processes)
        progress, states = run_folder.read_progress(folder, configuration, data, resume=resume)
        torch.manual_seed(configuration.seed)
        # The weights of the run's start set the norms' epsilon and the preprocessing, which its own files have kept.
        model = registry.load(folder / run_folder.LAST) if states else build_model(configuration, spec.head, data)
        # Once it is trained, the model no longer has the published weights.
        model.description = description = replace(model.description, weights=None, random_head=False)
        updates = configuration.epochs * -(-(len(data.train) // configuration.batch_size) // configuration.accumulate)
        momentum = set_norm_momentum(model, configuration.norm_momentum, updates)
        task = make_task(spec, description.preprocessing, data.classes, configuration)
        with _share_failure():
            if is_main:
                stack.enter_context(run_folder.lock_folder(folder, resume=resume))
                if not states:
                    count, every = len(data.train) + len(data.val), configuration.log_every
                    with bar("checking images", count, shown=True, log=log, every=every) as report:
                        check_readable(data, report)
                run_folder.check_space(folder, model, configuration)
                text = format_configuration(replace(configuration, out=str(folder)))
                replace_files({folder / run_folder.CONFIGURATION: text.encode()})
                log(describe(data))
                log(f"{spec.backbone.name} with {spec.head.name}; into {folder}")
                if momentum and configuration.norm_momentum is None:
                    log(
                        f"batch norm: momentum {momentum[1]:.3g} instead of {momentum[0]:.3g}, since the run has "
                        f"{updates} updates"
                    )
                if states:
                    log(f"resuming after epoch {progress.epochs}")
        trainer, batches = _make_trainer(accelerator, configuration, task, model, data)
        if states:
            run_folder.restore_states(trainer, states)
        accelerator.init_trackers(run_folder.LOGS)
        _run_epochs(trainer, batches, configuration, data, progress, spec.backbone.levels, folder, log)
        assert progress.metrics is not None
        if is_main:
            draw_curves(progress.history, folder / "curves.png")
            best = registry.load(folder / run_folder.BEST)
            write_evaluation(folder, best, task, data.classes, data.val, progress.metrics)
    return Result(folder, progress.best, progress.metrics, task, is_main)


def _accelerator_settings(configuration: Configuration, folder: Path) -> dict[str, Any]:
    return {
        "mixed_precision": configuration.mixed_precision,
        "gradient_accumulation_steps": configuration.accumulate,
        "log_with": "tensorboard",
        "project_config": ProjectConfiguration(str(folder), str(folder)),
        "dataloader_config": DataLoaderConfiguration(
            split_batches=True,
            use_seedable_sampler=True,
            data_seed=configuration.seed,
            even_batches=False,
            non_blocking=True,
        ),
        "kwargs_handlers": [
            DistributedDataParallelKwargs(
                # Frozen parameters get no gradients, and may get some later.
                find_unused_parameters=configuration.freeze is not None,
                # Each process counts its own images' statistics, which are averaged before a model is evaluated.
                broadcast_buffers=False,
            )
        ],
    }


def _check_precision(configuration: Configuration) -> None:
    # Accelerate would train in float32 without a word.
    if configuration.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise TrainingError(
            "mixed_precision='fp16' needs a GPU, and PyTorch finds none; use 'bf16', which CPUs compute too, or 'no'"
        )


def _check_batches(configuration: Configuration, data: DataSet, processes: int) -> None:
    size = configuration.batch_size
    if size % processes:
        raise TrainingError(f"batch_size={size} cannot be shared by {processes} processes; give a multiple of that")
    if len(data.train) < size:
        raise TrainingError(
            f"{configuration.data!r} has {len(data.train)} training images, fewer than a batch of {size}; lower "
            "batch_size"
        )
    steps = len(data.train) // size
    if configuration.accumulate > steps:
        raise TrainingError(
            f"accumulate={configuration.accumulate} is more than the {steps} steps of an epoch; lower it"
        )


def _make_trainer(
    accelerator: Accelerator, configuration: Configuration, task: Task, model: nn.Module, data: DataSet
) -> tuple[Trainer, Any]:
    """Return the trainer, and the batches of an epoch."""
    model = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # A copy, so before the model is wrapped.
    average = ModelEmaV3(model, decay=configuration.ema, use_warmup=True) if configuration.ema else None
    optimizer = make_optimizer(model, configuration)
    loader = make_loader(task, data.train, configuration.batch_size, configuration.workers or 0, training=True)
    # The last update of an epoch may be of fewer steps than the others. The schedule comes first, since it watches the
    # optimiser's steps, which Accelerate replaces for scaled losses.
    schedule = make_schedule(optimizer, configuration, -(-len(loader) // configuration.accumulate))
    wrapped, prepared_optimizer, batches = accelerator.prepare(model, optimizer, loader)
    clip_norm = configuration.clip_norm
    return Trainer(accelerator, task, wrapped, model, average, prepared_optimizer, schedule, clip_norm), batches


def _run_epochs(
    trainer: Trainer,
    batches: Any,
    configuration: Configuration,
    data: DataSet,
    progress: run_folder.Progress,
    levels: tuple[str, ...],
    folder: Path,
    log: Callable[[str], None],
) -> None:
    """Train and evaluate, epoch by epoch, from the progress so far to the end."""
    accelerator = trainer.accelerator
    processes, is_main = accelerator.num_processes, accelerator.is_main_process
    share = data.val[accelerator.process_index :: processes]
    batch_size, workers = configuration.batch_size // processes, configuration.workers or 0
    val_batches = make_loader(trainer.task, share, batch_size, workers, training=False)
    for epoch in range(progress.epochs, configuration.epochs):
        start = time.perf_counter()
        label = f"epoch {epoch + 1} of {configuration.epochs}"
        frozen = last_frozen(levels, configuration.freeze, configuration.unfreeze_every, epoch)
        freeze_through(trainer.unwrapped, frozen)
        # A seed that hardly any other pair of a run's seed and an epoch has.
        seed = np.random.SeedSequence((configuration.seed, epoch)).generate_state(1)[0]
        set_seed(int(seed), device_specific=True)
        batches.set_epoch(epoch)
        end = partial(end_of_run, time.monotonic(), configuration.epochs - epoch, tuple(progress.history))
        shown: dict[str, Any] = {"shown": is_main, "log": log, "every": configuration.log_every, "end": end}
        with bar(label, len(data.train) // processes, **shown) as report:
            loss, lr = train_epoch(trainer, batches, label, report, first_step=epoch * len(batches))
        seconds = time.perf_counter() - start
        if processes > 1:
            # Each process has the batch-norm statistics of its own images only.
            for model in dict.fromkeys((trainer.unwrapped, trainer.evaluated)):
                distribute_bn(model, processes, reduce=True)  # type: ignore[no-untyped-call]
        with bar(f"evaluating {label}", len(data.val) // processes, **shown) as report:
            metrics = compute_metrics(accelerator, trainer.task, trainer.evaluated, val_batches, report)
        row = {
            "epoch": epoch + 1,
            "train_loss": loss,
            **metrics.scores,
            "lr": lr,
            "seconds": time.perf_counter() - start,
            "images_per_second": len(batches) * configuration.batch_size / seconds,
        }
        progress.history.append(row)
        trainer.schedule.after_epoch(metrics.deciding_score)
        better = progress.is_better(metrics)
        if better:
            progress.best, progress.metrics = epoch + 1, metrics
        accelerator.log({name: value for name, value in row.items() if name != "epoch"}, step=epoch + 1)
        if is_main:
            if better:
                write_detections(folder, data.classes, data.val, metrics, data.ids)
            run_folder.save_epoch(folder, trainer, progress, better=better)
            log(format_epoch(progress.history, configuration.epochs))
        accelerator.wait_for_everyone()


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
        data_format: of a folder that can be read as several, as the setting `format`.
        images_root: of images outside the data set, as in training.
        out: folder for tables and pictures; None for none.
        log: called with a line about the data, and for progress where no terminal shows it, in the main process only.
        log_every: seconds between lines of progress; 0 for none.

    Returns:
        the metrics, the task, and whether this is the main process (rank 0).

    Raises:
        HeadError: the model has no head that can be evaluated.
        DataError: the data cannot be used, or has classes that the model has not. It may lack some of the model's.
        TrainingError: `out` cannot be created.
    """
    spec, description = spec_of(model, origin), description_of(model)
    with _open_accelerator() as accelerator:
        is_main, processes = accelerator.is_main_process, accelerator.num_processes
        shown: dict[str, Any] = {"shown": is_main, "log": log, "every": log_every}
        settings = source, val_fraction, seed, download_to, data_format, images_root
        first = first_label(spec.head)
        known = class_names(description)[first:]
        data = _run_on_main_first(accelerator, lambda: open_model_data(spec, *settings, known=known))
        lines = describe_part(data, part)
        data = with_model_classes(data, description, origin, first)
        samples = {"val": data.val, "train": data.train, "all": [*data.train, *data.val]}[part]
        if not samples:
            too_few = f"{source!r} has too few images to hold any out of training"
            raise DataError(too_few, hint=Hint("evaluate every image with", "part='all'"))
        with _share_failure():
            if is_main:
                try:
                    if out is not None:
                        out.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    problem = error.strerror or error
                    raise TrainingError(f"cannot make the folder {str(out)!r}: {problem}") from error
                for line in lines:
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
    if is_main:
        _report_absent(metrics, task)
    if out is not None and is_main:
        write_detections(out, data.classes, samples, metrics, data.ids)
        write_evaluation(out, model.cpu(), task, data.classes, samples, metrics)
    return metrics, task, is_main


def _report_absent(metrics: Metrics, task: Task) -> None:
    absent = [repr(each.name) for each in metrics.per_class if not each.occurrences]
    if absent:
        counted = "1 class is" if len(absent) == 1 else f"{len(absent)} classes are"
        logger.warning("%s absent, without %s: %s", counted, task.counted, first_few(absent, 5))


@contextmanager
def _open_accelerator(**settings: Any) -> Iterator[Accelerator]:
    """Yield an accelerator, and allow another with other `settings` after it in the same process."""
    # By default, Accelerate takes each of torchrun's processes for the only one where there is no GPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), **settings)
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        # Accelerate keeps its settings for the life of a process, and a notebook trains more than one model.
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _share_failure() -> Iterator[None]:
    """Let all processes wait until the main one has left this block, and fail with its message if it fails."""
    problem: FeaturetapError | None = None
    try:
        yield
    except FeaturetapError as error:
        problem = error
    message = broadcast_object_list([None if problem is None else str(problem)])[0]
    if problem is not None:
        raise problem
    if message is not None:
        raise TrainingError(message)


def _run_on_main_first(accelerator: Accelerator, function: Callable[[], Value]) -> Value:
    """Return what a function returns in each process; the main process runs it first, as downloads need."""
    results: list[Value] = []
    with _share_failure():
        if accelerator.is_main_process:
            results.append(function())
    return results[0] if results else function()
