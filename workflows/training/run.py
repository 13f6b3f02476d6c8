"""Training runs: from a configuration to weights, a history, tables and pictures."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration, set_seed
from timm.utils.distributed import distribute_bn
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from featuretap import registry
from featuretap.specs import ModelSpec
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import TrainingError
from featuretap.support.progress import bar, end_of_run, format_epoch
from featuretap.workflows.datasets.data_set import DataSet, check_readable
from featuretap.workflows.datasets.formats import describe
from featuretap.workflows.training import run_folder
from featuretap.workflows.training.configuration import (
    Configuration,
    format_configuration,
    of_head,
    resolve_defaults,
    with_absolute_paths,
)
from featuretap.workflows.training.evaluation import evaluate
from featuretap.workflows.training.fake_quantization import FakeQuantization
from featuretap.workflows.training.loop import Trainer, compute_metrics, make_loader, train_epoch
from featuretap.workflows.training.models import (
    as_trained,
    build_model,
    make_task,
    open_model_data,
    resolve_models,
    select_model,
)
from featuretap.workflows.training.optimization import (
    freeze_through,
    last_frozen,
    make_optimizer,
    make_schedule,
    set_norm_momentum,
)
from featuretap.workflows.training.plots import draw_curves
from featuretap.workflows.training.processes import open_accelerator, run_on_main_first, share_failure
from featuretap.workflows.training.quantized_file import check_quantizable, write_quantized
from featuretap.workflows.training.reports import write_detections, write_evaluation
from featuretap.workflows.training.several_heads import (
    HeadBatches,
    HeadsTask,
    accumulated_steps,
    combine_metrics,
    make_heads_loader,
    make_heads_task,
    make_order,
    resolve_best,
)
from featuretap.workflows.training.tasks.task import Metrics, Task

__all__ = ["Result", "evaluate", "train"]

logger = logging.getLogger("featuretap")

FOLLOWED = 0.5
"""Fraction of a run's epochs in which activations update the ranges of fake quantization."""


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        folder: the run folder.
        epoch: the best epoch, counted from 1.
        metrics: metrics of the best epoch.
        tasks: name of the head → task; with a single data set, the name is "".
        is_main: True on the main process (rank 0).
    """

    folder: Path
    epoch: int
    metrics: Metrics
    tasks: Mapping[str, Task]
    is_main: bool


def train(configuration: Configuration, *, resume: bool = False, log: Callable[[str], None] = print) -> Result:
    """Train a model.

    Random numbers depend only on the seed and the epoch, so a resumed run gives the same result as one without
    interruption.

    Args:
        configuration: settings of the run.
        resume: whether to resume the run in the folder `out`; otherwise, the folder must be new.
        log: called in the main process with a line per epoch, and with progress lines if there is no terminal.

    Returns:
        The run folder and the metrics of the best epoch. The folder contains `best.safetensors` and `last.safetensors`
        (both self-describing), `configuration.toml`, `history.csv`, tables, pictures and TensorBoard logs.

    Raises:
        TrainingError: the run cannot start or go on. Problems are reported before the first step where possible.
        DataError: the data cannot be used.
        FeaturetapError: as in `registry.build`.
    """
    _check_precision(configuration)
    folder = run_folder.folder_of(configuration)
    configuration, specs = resolve_models(configuration)
    configuration = with_absolute_paths(configuration)
    backbone = next(iter(specs.values())).backbone
    with open_accelerator(**_accelerator_settings(configuration, folder)) as accelerator, ExitStack() as stack:
        is_main = accelerator.is_main_process
        data = run_on_main_first(accelerator, lambda: _open_data(configuration, specs))
        of_heads = {
            name: resolve_defaults(of_head(configuration, name), spec.head.task, mirrors=data[name].mirrors)
            for name, spec in specs.items()
        }
        configuration = of_heads[""] if "" in specs else resolve_defaults(configuration, None, mirrors=True)
        check_processes(configuration, accelerator.num_processes)
        for name, own in data.items():
            _check_batches(of_heads[name], own)
        order = make_order(configuration, data)
        steps, accumulated = len(order), accelerator.gradient_accumulation_steps
        if accumulated > steps:
            raise TrainingError(
                f"accumulate={configuration.accumulate} is larger than the {steps} steps of an epoch; lower it"
            )
        progress, states = run_folder.read_progress(folder, configuration, data, resume=resume)
        torch.manual_seed(configuration.seed)
        # The initial weights determined the norms' epsilon and the preprocessing, so a resumed run reads its own file.
        model = registry.load(folder / run_folder.LAST) if states else build_model(configuration, specs, data)
        model.description = as_trained(model.description)
        if configuration.quantize:
            check_quantizable(model, accelerator.num_processes)
        updates = configuration.epochs * -(-steps // accumulated)
        momentum = set_norm_momentum(model, configuration.norm_momentum, updates)
        described = {name: model.description.heads[name] if name else model.description for name in specs}
        tasks = {
            name: make_task(spec, described[name].preprocessing, data[name].classes, of_heads[name])
            for name, spec in specs.items()
        }
        best = resolve_best(configuration.best, tasks)
        with share_failure():
            if is_main:
                stack.enter_context(run_folder.lock_folder(folder, resume=resume))
                if not states:
                    for own in data.values():
                        count, every = len(own.train) + len(own.val), configuration.log_every
                        with bar("checking images", count, shown=True, log=log, every=every) as report:
                            check_readable(own, report)
                run_folder.check_space(folder, model, configuration)
                text = format_configuration(replace(configuration, out=str(folder)))
                replace_files({folder / run_folder.CONFIGURATION: text.encode()})
                for name, own in data.items():
                    log(f"{name}: {describe(own)}" if name else describe(own))
                names = ", ".join(
                    f"{name}={spec.head.name}" if name else spec.head.name for name, spec in specs.items()
                )
                log(f"training {backbone.name} with {names}; run folder: {folder}")
                if momentum and configuration.norm_momentum is None and not configuration.quantize:
                    log(
                        f"batch norm: increased the momentum from {momentum[0]:.3g} to {momentum[1]:.3g}, since the "
                        f"run has only {updates} updates"
                    )
                if states:
                    log(f"resuming after epoch {progress.epochs}")
        trainer, batches = _make_trainer(accelerator, configuration, tasks, model, data, order)
        if states:
            run_folder.restore_states(trainer, states)
        accelerator.init_trackers(run_folder.LOGS)
        _run_epochs(trainer, batches, configuration, tasks, best, data, progress, backbone.levels, folder, log)
        assert progress.metrics is not None
        if is_main:
            draw_curves(progress.history, folder / "curves.png")
            model = registry.load(folder / run_folder.BEST)
            for name, own in data.items():
                metrics = progress.metrics.heads[name] if name else progress.metrics
                selected = select_model(model, name)
                write_evaluation(folder / name, selected, tasks[name], own.classes, own.val, metrics)
            if configuration.quantize:
                write_quantized(folder, tasks[""], data[""], progress.metrics, configuration, accelerator, log)
    return Result(folder, progress.best, progress.metrics, tasks, is_main)


def _open_data(configuration: Configuration, specs: Mapping[str, ModelSpec]) -> dict[str, DataSet]:
    settings = configuration.val_fraction, configuration.seed, configuration.download_to
    where = configuration.format, configuration.images_root
    sources = {name: of_head(configuration, name).data for name in specs}
    return {name: open_model_data(spec, str(sources[name]), *settings, *where) for name, spec in specs.items()}


def _accelerator_settings(configuration: Configuration, folder: Path) -> dict[str, Any]:
    return {
        "mixed_precision": configuration.mixed_precision,
        "gradient_accumulation_steps": accumulated_steps(configuration),
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
                # Frozen parameters have no gradients, but may be unfrozen later.
                find_unused_parameters=configuration.freeze is not None,
                # Each process has its own batch-norm statistics, which are averaged before evaluation.
                broadcast_buffers=False,
            )
        ],
    }


def _check_precision(configuration: Configuration) -> None:
    # Without this check, Accelerate would silently train in float32.
    if configuration.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise TrainingError(
            "mixed_precision='fp16' needs a GPU, and PyTorch finds none; use 'bf16', which runs on CPUs, or 'no'"
        )


def check_processes(configuration: Configuration, processes: int) -> None:
    """Check that several processes can share the run.

    Args:
        configuration: settings of the run.
        processes: number of processes.

    Raises:
        TrainingError: the batch size is not a multiple of the number, or the run has several heads.
    """
    size = configuration.batch_size
    if size % processes:
        raise TrainingError(
            f"batch_size={size} cannot be divided among {processes} processes; use a multiple of {processes}"
        )
    if processes > 1 and not isinstance(configuration.data, str):
        raise TrainingError(f"several heads cannot be trained with {processes} processes; start one process")


def _check_batches(configuration: Configuration, data: DataSet) -> None:
    size = configuration.batch_size
    if len(data.train) < size:
        raise TrainingError(
            f"{configuration.data!r} has {len(data.train)} training images, fewer than a batch of {size}; lower "
            "batch_size"
        )


def _make_trainer(
    accelerator: Accelerator,
    configuration: Configuration,
    tasks: Mapping[str, Task],
    model: nn.Module,
    data: Mapping[str, DataSet],
    order: HeadBatches,
) -> tuple[Trainer, Any]:
    """Return the trainer, and the data loader of the training batches."""
    model = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # The average copies the model, so create it before the model is wrapped.
    average = ModelEmaV3(model, decay=configuration.ema, use_warmup=True) if configuration.ema else None
    quantization = None
    if configuration.quantize:
        quantization = FakeQuantization(model).to(accelerator.device)
        for own in (model, *([average.module] if average else [])):
            quantization.attach(own)
    optimizer = make_optimizer(model, configuration)
    workers = configuration.workers or 0
    task: Task | HeadsTask
    if "" in tasks:
        task = tasks[""]
        loader = make_loader(task, data[""].train, configuration.batch_size, workers, training=True)
    else:
        task = make_heads_task(configuration, tasks)
        loader = make_heads_loader(task, data, order, workers)
    # The last update of an epoch may have fewer steps than the others. Create the schedule before `prepare`: it patches
    # the optimizer's `step`, which Accelerate replaces for loss scaling.
    schedule = make_schedule(optimizer, configuration, -(-len(loader) // accelerator.gradient_accumulation_steps))
    wrapped, prepared_optimizer, batches = accelerator.prepare(model, optimizer, loader)
    fixed = configuration.clip_norm, quantization
    return Trainer(accelerator, task, wrapped, model, average, prepared_optimizer, schedule, *fixed), batches


def _run_epochs(
    trainer: Trainer,
    batches: Any,
    configuration: Configuration,
    tasks: Mapping[str, Task],
    best: str,
    data: Mapping[str, DataSet],
    progress: run_folder.Progress,
    levels: tuple[str, ...],
    folder: Path,
    log: Callable[[str], None],
) -> None:
    """Train and evaluate all epochs that are not in `progress` yet."""
    accelerator = trainer.accelerator
    processes, is_main = accelerator.num_processes, accelerator.is_main_process
    batch_size, workers = configuration.batch_size // processes, configuration.workers or 0
    val_batches = {
        name: make_loader(
            tasks[name], own.val[accelerator.process_index :: processes], batch_size, workers, training=False
        )
        for name, own in data.items()
    }
    steps = len(batches)
    updates = configuration.epochs * -(-steps // accelerator.gradient_accumulation_steps)
    count = len(data[""].train) if "" in data else steps * configuration.batch_size
    for epoch in range(progress.epochs, configuration.epochs):
        start = time.perf_counter()
        label = f"epoch {epoch + 1} of {configuration.epochs}"
        frozen = last_frozen(levels, configuration.freeze, configuration.unfreeze_every, epoch)
        freeze_through(trainer.unwrapped, frozen)
        if trainer.quantization is not None:
            trainer.quantization.follows = epoch < math.ceil(configuration.epochs * FOLLOWED)
        # SeedSequence, unlike seed + epoch, hardly ever gives two runs the same seed in different epochs.
        seed = np.random.SeedSequence((configuration.seed, epoch)).generate_state(1)[0]
        set_seed(int(seed), device_specific=True)
        batches.set_epoch(epoch)
        end = partial(end_of_run, time.monotonic(), configuration.epochs - epoch, tuple(progress.history))
        shown: dict[str, Any] = {"shown": is_main, "log": log, "every": configuration.log_every, "end": end}
        if isinstance(trainer.task, HeadsTask):
            for model in trainer.task.select_models(trainer.unwrapped):
                freeze_through(model, frozen)
                set_norm_momentum(model, configuration.norm_momentum, updates)
        with bar(label, count // processes, **shown) as report:
            loss, lr = train_epoch(trainer, batches, label, report, first_step=epoch * len(batches))
        seconds = time.perf_counter() - start
        if processes > 1:
            # Average the batch-norm statistics, since each process has seen only its own images.
            for model in dict.fromkeys((trainer.unwrapped, trainer.evaluated)):
                distribute_bn(model, processes, reduce=True)  # type: ignore[no-untyped-call]
        by_head = {}
        for name, task in tasks.items():
            title = f"evaluating {name} in {label}" if name else f"evaluating {label}"
            with bar(title, len(data[name].val) // processes, **shown) as report:
                evaluated = select_model(trainer.evaluated, name)
                by_head[name] = compute_metrics(accelerator, task, evaluated, val_batches[name], report)
        metrics = by_head[""] if "" in by_head else combine_metrics(by_head, best)
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
                for name, own in data.items():
                    (folder / name).mkdir(exist_ok=True)
                    write_detections(folder / name, own.classes, own.val, by_head[name], own.ids)
            run_folder.save_epoch(folder, trainer, progress, better=better)
            log(format_epoch(progress.history, configuration.epochs))
        accelerator.wait_for_everyone()
