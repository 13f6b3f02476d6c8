"""A run of training, from a configuration to a folder with weights, a history and pictures."""

from __future__ import annotations

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
from featuretap.specs.description import Description
from featuretap.support.errors import TrainingError
from featuretap.support.progress import bar, epoch_in_words
from featuretap.workflows.datasets.checks import check_readable
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data
from featuretap.workflows.training.configuration import Configuration, located, resolved
from featuretap.workflows.training.epoch import Learner, train_epoch
from featuretap.workflows.training.freezing import check_freezing, freeze_through, frozen_through
from featuretap.workflows.training.judging import judge
from featuretap.workflows.training.loaders import judging_loader, training_loader
from featuretap.workflows.training.models import build_model, described, make_task, trainable_head
from featuretap.workflows.training.optimisation import make_optimizer, make_schedule
from featuretap.workflows.training.processes import accelerated, first_alone, together
from featuretap.workflows.training.reports.writing import write_run
from featuretap.workflows.training.run_folder import (
    BEST,
    LAST,
    LOGS,
    STATE,
    claimed,
    folder_of,
    identity,
    keep,
    restore,
    write_configuration,
)
from featuretap.workflows.training.state import Progress, check_space, read_state
from featuretap.workflows.training.tasks.task import Augmentation, Judgement, Task

__all__ = ["Result", "train"]

MOMENTS = {"adamw": 2, "sgd": 1}
"""Numbers that an optimiser keeps for each parameter."""


class Result(NamedTuple):
    """What has become of a run.

    Attributes:
        folder: where it lies.
        epoch: the best, from 1.
        judgement: of that epoch.
        task: of the model.
        leads: whether this process is the one of several that speaks for all.
    """

    folder: Path
    epoch: int
    judgement: Judgement
    task: Task
    leads: bool


def train(configuration: Configuration, *, resume: bool = False, say: Callable[[str], None] = print) -> Result:
    """Train a model.

    Everything random in an epoch follows from the seed and the number of the epoch, so that a run that was interrupted
    and goes on does the same as one that was not.

    Args:
        configuration: of the run.
        resume: whether the run in the folder `out` goes on; without, the folder has to be new.
        say: is given a line for each epoch, in the first process only.

    Returns:
        the folder with `best.safetensors`, `last.safetensors` (both describe themselves), `configuration.toml`,
        `history.csv`, tables, pictures and TensorBoard's logs.

    Raises:
        TrainingError, DataError: of the run, or of its data; whatever can be known is said before the first step.
        FeaturetapError: as `registry.build` does.
    """
    folder = folder_of(configuration)
    head = trainable_head(configuration.head)
    name, options, spec = described(configuration, head)
    check_freezing(spec.backbone, configuration.freeze)
    # What a file of weights says of its model is kept, so that the run can go on without it.
    configuration = located(replace(configuration, backbone=name, options=options))
    with accelerated(**_settings(configuration, folder)) as accelerator:
        return _run(accelerator, configuration, folder, spec, resume=resume, say=say)


def _run(
    accelerator: Accelerator,
    configuration: Configuration,
    folder: Path,
    spec: ModelSpec,
    *,
    resume: bool,
    say: Callable[[str], None],
) -> Result:
    """Do the work of `train` in one of its processes."""
    head, masks, first = spec.head, "masks" in spec.outputs(1, 1), accelerator.is_main_process
    opening = partial(
        open_data,
        configuration.data,
        head.task,  # type: ignore[arg-type]
        val_fraction=configuration.val_fraction,
        seed=configuration.seed,
        download_to=Path(configuration.download_to) if configuration.download_to else None,
        masks=masks,
    )
    data = first_alone(accelerator, opening)
    configuration = resolved(configuration, head.task, mirrors=data.mirrors)
    _check_batches(configuration, data, accelerator.num_processes)
    progress = Progress(identity(configuration, data))
    states: Mapping[str, Any] = {}
    if resume and (folder / STATE).exists():
        progress, states = read_state(folder / STATE, progress.identity)
        if configuration.epochs < progress.epochs:
            raise TrainingError(
                f"the run in {str(folder)!r} has done {progress.epochs} epochs, more than "
                f"epochs={configuration.epochs}; give more, or leave epochs out"
            )
    torch.manual_seed(configuration.seed)
    # The weights that a run began with set its norms' epsilon and its preprocessing, which its own files remember.
    model = registry.load(folder / LAST) if states else build_model(configuration, data)
    description = model.description
    assert isinstance(description, Description)
    model.description = description = replace(description, weights=None)
    augmentation = Augmentation(configuration.flip or 0.0, configuration.crop_scale, configuration.augment)  # type: ignore[arg-type]
    smoothing = configuration.label_smoothing or 0.0
    task = make_task(head, description.preprocessing, data.classes, augmentation, smoothing, masks=masks)
    with ExitStack() as stack:
        with together(accelerator):
            if first:
                stack.enter_context(claimed(folder, resume=resume))
                if not states:
                    _check_images(data)
                averaged = configuration.ema > 0
                check_space(folder, model, moments=MOMENTS[configuration.optimizer], averaged=averaged)
                write_configuration(folder, configuration)
                say(
                    f"{spec.backbone.name} with {head.name}: {len(data.classes)} classes, {len(data.train)} images to "
                    f"learn from, {len(data.val)} to judge by; into {folder}"
                )
                if states:
                    say(f"going on after epoch {progress.epochs}")
        learner, batches = _prepared(accelerator, configuration, task, model, data)
        if states:
            restore(learner, states)
        accelerator.init_trackers(LOGS)
        _learn(learner, batches, configuration, data, progress, spec.backbone.levels, folder, say)
        assert progress.judgement is not None
        if first:
            write_run(folder, registry.load(folder / BEST), task, data, progress.history, progress.judgement)
    return Result(folder, progress.best, progress.judgement, task, first)


def _check_images(data: DataSet) -> None:
    with bar("checking images", len(data.train) + len(data.val), shown=True) as report:
        check_readable(data, lambda done: report(1))


def _learn(
    learner: Learner,
    batches: Any,
    configuration: Configuration,
    data: DataSet,
    progress: Progress,
    levels: tuple[str, ...],
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Learn and judge, epoch by epoch, from where the progress is to the end."""
    accelerator = learner.accelerator
    processes, first = accelerator.num_processes, accelerator.is_main_process
    judged_by = judging_loader(
        learner.task,
        data.val,
        configuration.batch_size // processes,
        configuration.workers or 0,
        (accelerator.process_index, processes),
    )
    updates = progress.epochs * _updates(batches, configuration)
    for epoch in range(progress.epochs, configuration.epochs):
        begin = time.perf_counter()
        words = f"epoch {epoch + 1} of {configuration.epochs}"
        first_frozen, every = configuration.freeze, configuration.unfreeze_every
        freeze_through(learner.bare, frozen_through(levels, first_frozen, every, epoch))
        set_seed(_seed(configuration.seed, epoch), device_specific=True)
        batches.set_epoch(epoch)
        with bar(words, len(data.train) // processes, shown=first) as report:
            learned = train_epoch(learner, batches, updates, words, report)
        updates, seconds = learned.updates, time.perf_counter() - begin
        if processes > 1:
            # Each process has seen the statistics of its own images only.
            for model in dict.fromkeys((learner.bare, learner.judged)):
                distribute_bn(model, processes, reduce=True)  # type: ignore[no-untyped-call]
        with bar(f"judging {words}", len(data.val) // processes, shown=first) as report:
            judgement = judge(accelerator, learner.task, learner.judged, judged_by, report)
        row = {
            "epoch": epoch + 1,
            "train_loss": learned.loss,
            **judgement.scores,
            "lr": learned.lr,
            "seconds": time.perf_counter() - begin,
            "images_per_second": len(batches) * configuration.batch_size / seconds,
        }
        progress.history.append(row)
        score = _deciding(judgement)
        learner.schedule.after_epoch(score)
        better = progress.judgement is None or score > _deciding(progress.judgement)
        if better:
            progress.best, progress.judgement = epoch + 1, judgement
        accelerator.log({name: value for name, value in row.items() if name != "epoch"}, step=epoch + 1)
        if first:
            keep(folder, learner, progress, better=better)
            say(epoch_in_words(row, configuration.epochs))
        accelerator.wait_for_everyone()


def _settings(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """Return what Accelerate has to know of a run."""
    return {
        "mixed_precision": configuration.mixed_precision,
        "gradient_accumulation_steps": configuration.accumulate,
        "log_with": "tensorboard",
        "project_config": ProjectConfiguration(str(folder), str(folder)),
        "dataloader_config": DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True, data_seed=configuration.seed, even_batches=False
        ),
        # Parameters that are frozen for now get no gradients, and may get some later.
        "kwargs_handlers": [
            DistributedDataParallelKwargs(
                find_unused_parameters=configuration.freeze is not None,
                # Each process counts its own images' statistics, which are averaged before a model is judged.
                broadcast_buffers=False,
            )
        ],
    }


def _prepared(
    accelerator: Accelerator, configuration: Configuration, task: Task, model: nn.Module, data: DataSet
) -> tuple[Learner, Any]:
    bare = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # A copy, so before the model is wrapped.
    average = ModelEmaV3(bare, decay=configuration.ema, use_warmup=True) if configuration.ema else None
    optimizer = make_optimizer(bare, configuration)
    batches = training_loader(task, data.train, configuration.batch_size, configuration.workers or 0)
    wrapped, prepared_optimizer, prepared_batches = accelerator.prepare(bare, optimizer, batches)
    schedule = make_schedule(optimizer, configuration, _updates(prepared_batches, configuration))
    clip = configuration.clip_norm
    return Learner(accelerator, task, wrapped, bare, average, prepared_optimizer, schedule, clip), prepared_batches


def _updates(batches: Any, configuration: Configuration) -> int:
    """Return the changes of the weights in an epoch; the last may be of fewer steps than the others."""
    return -(-len(batches) // configuration.accumulate)


def _check_batches(configuration: Configuration, data: DataSet, processes: int) -> None:
    size = configuration.batch_size
    if size % processes:
        raise TrainingError(f"batch_size={size} cannot be shared by {processes} processes; give a multiple of that")
    if len(data.train) < size:
        raise TrainingError(
            f"{configuration.data!r} has {len(data.train)} images to learn from, fewer than a batch of {size}; lower "
            "batch_size"
        )
    steps = len(data.train) // size
    if configuration.accumulate > steps:
        raise TrainingError(
            f"accumulate={configuration.accumulate} is more than the {steps} steps of an epoch; lower it"
        )


def _deciding(judgement: Judgement) -> float:
    """Return the score by which models are compared; what is no number, as where nothing was there, is the worst."""
    score = next(iter(judgement.scores.values()))
    return -1.0 if np.isnan(score) else score


def _seed(seed: int, epoch: int) -> int:
    """Return a seed that hardly any other pair of a run's seed and an epoch has."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
