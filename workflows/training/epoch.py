"""One epoch of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from featuretap.support.errors import TrainingError
from featuretap.workflows.training.optimisation import Schedule, learning_rate
from featuretap.workflows.training.tasks.task import Task

__all__ = ["Learned", "Learner", "train_epoch"]

ONE_IMAGE = "more than 1 value per channel"
"""What torch's batch norm says of a batch that has one number for each channel."""


@dataclass(frozen=True)
class Learner:
    """What learns.

    Args:
        accelerator: of this process.
        task: of the model.
        model: as it is called in training, wrapped for several processes.
        bare: the same, not wrapped.
        average: moving average of the bare model, if one is kept.
        optimizer: of the model.
        schedule: of the optimiser.
        clip_norm: largest norm of the gradients; 0 for any.
    """

    accelerator: Accelerator
    task: Task
    model: nn.Module
    bare: nn.Module
    average: ModelEmaV3 | None
    optimizer: Optimizer
    schedule: Schedule
    clip_norm: float

    @property
    def judged(self) -> nn.Module:
        """The model that is judged and kept."""
        return self.bare if self.average is None else self.average.module


class Learned(NamedTuple):
    """What an epoch has brought: the mean loss over all processes, changes of the weights so far, and the last rate."""

    loss: float
    updates: int
    lr: float


def train_epoch(learner: Learner, batches: Any, updates: int, words: str, report: Callable[[int], None]) -> Learned:
    """Learn from every batch once.

    Args:
        learner: what learns.
        batches: the loader, shared out by Accelerate.
        updates: changes of the weights before this epoch, by which a moving average warms up.
        words: what messages call the epoch.
        report: is told the number of images of each batch of this process.

    Raises:
        TrainingError: the loss is no number any more, or batch norm has one number only.
    """
    accelerator, optimizer = learner.accelerator, learner.optimizer
    learner.model.train()
    mean = MeanMetric().to(accelerator.device)
    lr = learning_rate(optimizer)
    steps, together = len(batches), accelerator.gradient_accumulation_steps
    # The last gradients of an epoch may be added up over fewer steps, and Accelerate divides them all alike.
    shorter = steps - steps % together
    for step, (images, targets) in enumerate(batches):
        with accelerator.accumulate(learner.model):
            loss = _loss(learner, images, targets)
            if not math.isfinite(loss.item()):
                raise TrainingError(
                    f"the loss became {loss.item()} in {words}; the weights of the epoch before are kept. A lower lr, "
                    "more warmup_epochs, or clip_norm=1 may help"
                )
            accelerator.backward(loss * (together / (steps - shorter)) if step >= shorter else loss)
            if accelerator.sync_gradients and learner.clip_norm:
                accelerator.clip_grad_norm_(learner.model.parameters(), learner.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            updates += 1
            lr = learning_rate(optimizer)
            learner.schedule.after_update()
            if learner.average is not None:
                learner.average.update(learner.bare, step=updates)
        mean.update(loss.detach(), weight=len(images))
        report(len(images))
    return Learned(float(mean.compute()), updates, lr)


def _loss(learner: Learner, images: Any, targets: Any) -> torch.Tensor:
    try:
        with learner.accelerator.autocast():
            return learner.task.loss(learner.model, images, targets)
    except ValueError as error:
        if ONE_IMAGE not in str(error):
            raise
        raise TrainingError(
            f"batch norm cannot learn from {len(images)} image of each process at a time; raise batch_size"
        ) from error
