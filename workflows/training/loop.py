"""The training loop: data loaders, one epoch of training, and the metrics of a model on a data set."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

from featuretap.support.errors import DataError, FeaturetapError, ImageError, TrainingError
from featuretap.support.workers import collate_or_error, ignore_sigint, raise_errors
from featuretap.workflows.datasets.data_set import Sample
from featuretap.workflows.training.fake_quantization import FakeQuantization
from featuretap.workflows.training.optimization import Schedule, learning_rate
from featuretap.workflows.training.tasks.task import Metrics, Task, Transform

ONE_IMAGE = "more than 1 value per channel"
"""Part of the error message of PyTorch's batch norm for a batch with one value per channel."""


class Trained(Protocol):
    """An object with a training loss: a task, or the tasks of several heads."""

    def loss(self, model: nn.Module, images: Any, targets: Any) -> torch.Tensor:
        """Return the mean loss of a batch. `model` is in training mode and may be wrapped for several processes."""


@dataclass(frozen=True)
class Trainer:
    """A model in training, with its optimizer and schedule.

    Args:
        accelerator: Accelerate's object for devices, processes and precision.
        task: provides the loss.
        model: the model, wrapped for several processes.
        unwrapped: the same model without the wrapper.
        average: exponential moving average of the weights, or None.
        optimizer: the optimizer, prepared by Accelerate.
        schedule: the learning rate schedule.
        clip_norm: maximum gradient norm; 0 disables clipping.
        quantization: fake quantization of `model` and `average`, in runs with the setting `quantize`.
    """

    accelerator: Accelerator
    task: Trained
    model: nn.Module
    unwrapped: nn.Module
    average: ModelEmaV3 | None
    optimizer: Optimizer
    schedule: Schedule
    clip_norm: float
    quantization: FakeQuantization | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate and save: the moving average if there is one."""
        return self.unwrapped if self.average is None else self.average.module


def train_epoch(
    trainer: Trainer, batches: Any, label: str, report: Callable[[int, str], None], *, first_step: int = 0
) -> tuple[float, float]:
    """Train for one epoch.

    The trackers of the accelerator log "step loss" and "step lr" of the main process at every step.

    Args:
        trainer: the model in training.
        batches: batches of the epoch.
        label: name of the epoch in error messages.
        report: called after each batch with its number of images in this process, and a text with loss, learning rate
            and images per second over all processes.
        first_step: number of steps before the epoch.

    Returns:
        The mean loss over all processes, and the last learning rate.

    Raises:
        TrainingError: the loss is NaN or infinite.
    """
    accelerator, optimizer = trainer.accelerator, trainer.optimizer
    trainer.model.train()
    mean = MeanMetric().to(accelerator.device)
    lr = learning_rate(optimizer)
    steps, accumulated = len(batches), accelerator.gradient_accumulation_steps
    # The last update of an epoch may accumulate fewer steps, but Accelerate divides by the same number for all.
    remainder = steps % accumulated
    start, images_done = time.perf_counter(), 0
    for step, (images, targets) in enumerate(raise_errors(batches)):
        with accelerator.accumulate(trainer.model):
            loss = _loss(trainer, images, targets)
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} in {label}; try a lower lr, more warmup_epochs, or clip_norm=1 (weights "
                    "of earlier epochs are kept)"
                )
            accelerator.backward(loss * (accumulated / remainder) if step >= steps - remainder else loss)
            if accelerator.sync_gradients and trainer.clip_norm:
                accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        # With loss scaling, the optimizer skips a step whose gradients overflow.
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            lr = learning_rate(optimizer)
            trainer.schedule.after_update()
            if trainer.average is not None:
                trainer.average.update(trainer.unwrapped, step=trainer.schedule.updates)
        mean.update(loss.detach(), weight=len(images))
        accelerator.log({"step loss": value, "step lr": lr}, step=first_step + step + 1)
        images_done += len(images) * accelerator.num_processes
        rate = images_done / (time.perf_counter() - start)
        report(len(images), f"loss {value:.4f}  lr {lr:.3g}  {rate:.1f} images/s")
    return float(mean.compute()), lr


def _loss(trainer: Trainer, images: Any, targets: Any) -> torch.Tensor:
    try:
        with trainer.accelerator.autocast():
            return trainer.task.loss(trainer.model, images, targets)
    except ValueError as error:
        if ONE_IMAGE not in str(error):
            raise
        raise TrainingError(
            f"batch norm cannot be trained with {len(images)} image per process and step; increase batch_size"
        ) from error


@torch.no_grad()
def compute_metrics(
    accelerator: Accelerator,
    task: Task,
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    report: Callable[[int], None],
) -> Metrics:
    """Return the task's metrics over the batches of all processes.

    Args:
        accelerator: of the run.
        task: provides predictions and metrics; a task with an evaluation loss adds the metric "loss".
        model: the model, not wrapped: a wrapped one would wait forever if processes have unequal numbers of batches.
        batches: batches of this process.
        report: called with the number of images of each batch.

    Returns:
        The metrics, equal in all processes.
    """
    training = model.training
    model.eval()
    evaluator = task.evaluator(accelerator.device)
    loss = MeanMetric().to(accelerator.device)
    # torchmetrics warns about a metric without updates, as in a process without samples.
    loss.update(0.0, weight=0.0)
    for batch in raise_errors(batches):
        images, targets = send_to_device(batch, accelerator.device, non_blocking=True)
        with accelerator.autocast():
            outputs = task.predict(model, images)
        evaluator.update(outputs, targets)
        if task.has_evaluation_loss:
            mean, count = task.evaluation_loss(outputs, targets)
            loss.update(mean, weight=count.to(mean.device))
        report(len(images))
    model.train(training)
    metrics = evaluator.compute()
    if task.has_evaluation_loss:
        metrics = replace(metrics, scores={**metrics.scores, "loss": float(loss.compute())})
    return metrics


class TransformedSamples(Dataset[Any]):
    """Samples as tensors. A sample that cannot be read is returned as its error."""

    def __init__(self, samples: Sequence[Sample], transform: Transform) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any] | FeaturetapError:
        sample = self.samples[index]
        try:
            image, target = sample.read()
        except FeaturetapError as error:
            return error
        try:
            return self.transform(image, target)
        except ImageError as error:
            return DataError(f"{sample.name!r} cannot be prepared: {error}")


def make_loader(
    task: Task, samples: Sequence[Sample], batch_size: int, workers: int, *, training: bool
) -> DataLoader[Any]:
    """Return a data loader: for training shuffled and without the incomplete last batch, for evaluation in order.

    Args:
        task: provides transforms and collation.
        samples: samples to load.
        batch_size: images per batch.
        workers: number of worker processes.
        training: whether the loader is for training.

    Returns:
        The loader. Iterate over it with `raise_errors`, since a `FeaturetapError` can take the place of a batch.
    """
    return DataLoader(
        TransformedSamples(samples, task.training_transform() if training else task.evaluation_transform()),
        batch_size,
        shuffle=training,
        drop_last=training,
        collate_fn=partial(collate_or_error, task.collate),
        num_workers=workers,
        # GPUs copy pinned memory asynchronously.
        pin_memory=torch.cuda.is_available(),
        # Workers are not persistent: each epoch starts them with seeds from its own, so a resumed run sees the same.
        worker_init_fn=ignore_sigint,
    )
