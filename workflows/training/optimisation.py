"""What is trained, and how fast: freezing of levels, the optimiser, and its learning rates."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from featuretap.models.built import unwrap
from featuretap.models.freezing import set_freezing
from featuretap.specs.options import Freezing
from featuretap.workflows.training.configuration import Configuration

MOMENTUM = 0.9
NORM_MOMENTUM = 0.1
"""PyTorch's default, to which the momentum of batch norms is raised at most."""

AVERAGED = 0.1
"""Fraction of a run's updates that running statistics average over at most."""

WARMUP_START = 1e-3
"""Fraction of the learning rate at which the warm-up begins, since a step of 0 changes nothing."""

PLATEAU_FACTOR = 0.1
HEAD = "head"


def last_frozen(levels: tuple[str, ...], first: str | None, every: int, epoch: int) -> str | None:
    """Return the last frozen one of a backbone's levels in an epoch from 0; None if all are trained.

    In epoch 0 it is the level `first`; after `every` so many epochs one more level is unfrozen, or never if it is 0.
    """
    if first is None:
        return None
    last = levels.index(first) - (epoch // every if every else 0)
    return levels[last] if last >= 0 else None


def freeze_through(model: nn.Module, level: str | None) -> None:
    """Freeze a backbone through a level, and unfreeze the rest, except norms that the option `freeze_norm` froze."""
    built = unwrap(model, "training freezes")
    set_freezing(built, Freezing(level, bool(built.description.options.get("freeze_norm"))))


def set_norm_momentum(model: nn.Module, momentum: float | None, updates: int) -> tuple[float, float] | None:
    """Set the momentum of all batch norms, and return the smallest before and after it, or None if none changed.

    MobileNetV3's momentum of 0.01 averages over hundreds of updates. A run of no more than that would be evaluated with
    the statistics of its start.

    Args:
        model: to be trained.
        momentum: of all norms; None raises those that would average over more than `AVERAGED` of the run.
        updates: of the weights in the run.
    """
    least = min(NORM_MOMENTUM, 1 / (AVERAGED * updates))
    changed = []
    for norm in model.modules():
        # Without a momentum, a norm averages over all batches alike.
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.momentum is not None:
            own, norm.momentum = norm.momentum, max(norm.momentum, least) if momentum is None else momentum
            if norm.momentum != own:
                changed.append((own, norm.momentum))
    return min(changed, default=None)


def make_optimizer(model: nn.Module, configuration: Configuration) -> Optimizer:
    """Return the optimiser of all of a model's parameters, frozen ones included, which may be unfrozen later.

    Norms and biases do not decay (arXiv 1812.01187, section 3.1). A level's learning rate is `layer_decay` times that
    of the next level, and the head has the full rate (arXiv 2106.08254, appendix).
    """
    lr, decay = configuration.lr or 0.0, configuration.weight_decay
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((_level(name), parameter.ndim > 1), []).append(parameter)
    levels = [*sorted({level for level, _ in groups} - {HEAD}), HEAD]
    scales = {level: configuration.layer_decay**depth for depth, level in enumerate(reversed(levels))}
    tables: list[dict[str, Any]] = [
        {"params": parameters, "lr": lr * scales[level], "weight_decay": decay if decays else 0.0}
        for (level, decays), parameters in groups.items()
    ]
    return SGD(tables, lr, momentum=MOMENTUM) if configuration.optimizer == "sgd" else AdamW(tables, lr)


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

    @property
    def updates(self) -> int:
        """Updates of the weights so far."""
        return self.by_update.last_epoch

    def after_update(self) -> None:
        """Advance by one update."""
        self.by_update.step()

    def after_epoch(self, score: float) -> None:
        """Report the score of the model, the higher the better; it counts once the warm-up is over."""
        warmup = self.by_update.total_iters if isinstance(self.by_update, LinearLR) else 0
        if self.by_epoch is not None and self.updates >= warmup:
            self.by_epoch.step(score)

    @property
    def _parts(self) -> list[Any]:
        return [self.by_update] if self.by_epoch is None else [self.by_update, self.by_epoch]

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another schedule stopped, at this one's learning rates if it has become longer."""
        for part, own in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(own)
        if isinstance(self.by_update, LambdaLR):
            groups = self.by_update.optimizer.param_groups
            for group, highest, factor in zip(groups, self.by_update.base_lrs, self.by_update.lr_lambdas, strict=True):
                group["lr"] = highest * factor(self.updates)


def make_schedule(optimizer: Optimizer, configuration: Configuration, updates: int) -> Schedule:
    """Return the schedule of a run: cosine (arXiv 1608.03983, without restarts) or plateau, after a warm-up."""
    warmup, total = round((configuration.warmup_epochs or 0.0) * updates), configuration.epochs * updates
    if configuration.schedule == "cosine":
        return Schedule(LambdaLR(optimizer, _cosine(warmup, total)))
    rise = LinearLR(optimizer, WARMUP_START if warmup else 1.0, total_iters=max(warmup, 1))
    plateau = ReduceLROnPlateau(optimizer, mode="max", factor=PLATEAU_FACTOR, patience=configuration.patience)
    return Schedule(rise, plateau)


def _cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at an update, from 0."""

    def factor(update: int) -> float:
        if update < warmup:
            return WARMUP_START + (1 - WARMUP_START) * update / warmup
        return (1 + math.cos(math.pi * min(1.0, (update - warmup) / max(1, total - warmup)))) / 2

    # A function, since a scheduler keeps the attributes of an object in its state: a run may be given more epochs.
    return factor
