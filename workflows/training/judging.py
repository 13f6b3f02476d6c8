"""How good a model is on a part of a data set, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torchmetrics import MeanMetric

from featuretap.workflows.training.tasks.task import Judgement, Task

__all__ = ["judge"]


@torch.no_grad()
def judge(
    accelerator: Accelerator,
    task: Task,
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    report: Callable[[int], None],
) -> Judgement:
    """Judge a model on the batches of all processes together.

    Args:
        accelerator: of this process; the model is the bare one, since shares of unequal length would wait for each
            other inside a wrapped one.
        task: of the model.
        model: left in the mode that it was in.
        batches: the share of this process.
        report: is told the number of images of each batch.

    Returns:
        what the task's measures say, with the mean "loss" behind them where the task has one.
    """
    training = model.training
    model.eval()
    measuring = task.measuring(accelerator.device)
    loss = MeanMetric().to(accelerator.device)
    # torchmetrics warns of what has seen nothing, as that of a process without a share of its own.
    loss.update(0.0, weight=0.0)
    has_loss = False
    for batch in batches:
        images, targets = send_to_device(batch, accelerator.device)
        with accelerator.autocast():
            outputs = task.predict(model, images)
        measuring.update(outputs, targets)
        part = task.judging_loss(outputs, targets)
        if part is not None:
            loss.update(part, weight=len(images))
            has_loss = True
        report(len(images))
    model.train(training)
    judgement = measuring.compute()
    # A process without a share of its own has seen no loss, and still has to take part in adding them up.
    if not accelerator.gather(torch.tensor([has_loss], device=accelerator.device)).any():
        return judgement
    return replace(judgement, scores={**judgement.scores, "loss": float(loss.compute())})
