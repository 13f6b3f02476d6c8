"""The optimiser, and how its learning rates rise and fall."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from featuretap.workflows.training.configuration import Configuration

__all__ = ["Schedule", "learning_rate", "make_optimizer", "make_schedule"]

MOMENTUM = 0.9
LEAST_SHARE = 1e-3
"""Share of the learning rate at which the rise from 0 begins, since a step of 0 would be in vain."""

PLATEAU_FACTOR = 0.1
HEAD = "head"


def make_optimizer(model: nn.Module, configuration: Configuration) -> Optimizer:
    """Return the optimiser of all of a model's parameters, frozen ones included, which may thaw later.

    Norms and biases do not decay (arXiv 1812.01187, section 3.1). A level's learning rate is `layer_decay` times that
    of the level behind it, the head having all of it (arXiv 2106.08254, appendix).
    """
    lr, decay = configuration.lr, configuration.weight_decay
    assert lr is not None
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((_level(name), parameter.ndim > 1), []).append(parameter)
    levels = [*sorted({level for level, _ in groups} - {HEAD}), HEAD]
    shares = {level: configuration.layer_decay**behind for behind, level in enumerate(reversed(levels))}
    tables: list[dict[str, Any]] = [
        {"params": parameters, "lr": lr * shares[level], "weight_decay": decay if decays else 0.0}
        for (level, decays), parameters in groups.items()
    ]
    if configuration.optimizer == "sgd":
        return SGD(tables, lr, momentum=MOMENTUM)
    return AdamW(tables, lr)


def learning_rate(optimizer: Optimizer) -> float:
    """Return the highest learning rate of all parameters."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _level(name: str) -> str:
    """Return what a parameter belongs to: a stage of a table's backbone, all of another one, or the head."""
    part, *path = name.split(".")
    if part != "backbone":
        return HEAD
    return path[1] if path[0] == "stages" and len(path) > 2 else ""


@dataclass(frozen=True)
class Schedule:
    """Learning rates that change after every update of the weights, and perhaps after an epoch."""

    by_update: LambdaLR | LinearLR
    by_epoch: ReduceLROnPlateau | None = None

    def after_update(self) -> None:
        """Go one update on."""
        self.by_update.step()

    def after_epoch(self, score: float) -> None:
        """Take in how good the model is, which is better the higher it is."""
        if self.by_epoch is not None and self.by_update.last_epoch >= self.warmup:
            self.by_epoch.step(score)

    @property
    def warmup(self) -> int:
        """Updates of the rise of a schedule with a plateau; the other has it inside."""
        return self.by_update.total_iters if isinstance(self.by_update, LinearLR) else 0

    def _parts(self) -> Iterator[Any]:
        yield self.by_update
        if self.by_epoch is not None:
            yield self.by_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"parts": [part.state_dict() for part in self._parts()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another left off, on the way of this one if that has become longer."""
        for part, own in zip(self._parts(), state["parts"], strict=True):
            part.load_state_dict(own)
        if isinstance(self.by_update, LambdaLR):
            groups = self.by_update.optimizer.param_groups
            for group, highest, share in zip(groups, self.by_update.base_lrs, self.by_update.lr_lambdas, strict=True):
                group["lr"] = highest * share(self.by_update.last_epoch)


def make_schedule(optimizer: Optimizer, configuration: Configuration, updates: int) -> Schedule:
    """Return the schedule of a run.

    Args:
        optimizer: whose learning rates are the highest.
        configuration: cosine (arXiv 1608.03983, without restarts) or plateau, and the epochs of the rise before it.
        updates: changes of the weights in an epoch.
    """
    warmup, total = round((configuration.warmup_epochs or 0.0) * updates), configuration.epochs * updates
    if configuration.schedule == "cosine":
        return Schedule(LambdaLR(optimizer, _cosine(warmup, total)))
    rise = LinearLR(optimizer, LEAST_SHARE if warmup else 1.0, total_iters=max(warmup, 1))
    plateau = ReduceLROnPlateau(optimizer, mode="max", factor=PLATEAU_FACTOR, patience=configuration.patience)
    return Schedule(rise, plateau)


def _cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Return the share of the learning rate at an update, from 0."""

    def share(update: int) -> float:
        if update < warmup:
            return LEAST_SHARE + (1 - LEAST_SHARE) * update / warmup
        return (1 + math.cos(math.pi * min(1.0, (update - warmup) / max(1, total - warmup)))) / 2

    # A function and no object, whose numbers a scheduler would keep in its state: a run may go on for more epochs.
    return share
