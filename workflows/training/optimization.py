"""Freezing of levels, optimizers, learning rate schedules and batch-norm momentum."""

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
"""PyTorch's default, the maximum to which the momentum of batch norms is increased."""

AVERAGED = 0.1
"""Maximum fraction of a run's updates that running statistics average over."""

WARMUP_START = 1e-3
"""Learning rate at the start of the warmup, as a fraction of the peak; a rate of 0 would waste the first step."""

PLATEAU_FACTOR = 0.1
HEAD = "head"


def last_frozen(levels: tuple[str, ...], first: str | None, every: int, epoch: int) -> str | None:
    """Return the last frozen level of a backbone in an epoch.

    Args:
        levels: levels of the backbone.
        first: last frozen level in epoch 0, or None.
        every: number of epochs after which one more level is unfrozen; 0 for never.
        epoch: the epoch, counted from 0.

    Returns:
        The level, or None if all levels are trained.
    """
    if first is None:
        return None
    last = levels.index(first) - (epoch // every if every else 0)
    return levels[last] if last >= 0 else None


def freeze_through(model: nn.Module, level: str | None) -> None:
    """Freeze a backbone up to `level` and unfreeze the rest, except norms frozen by the option `freeze_norm`."""
    built = unwrap(model, "training freezes")
    set_freezing(built, Freezing(level, bool(built.description.options.get("freeze_norm"))))


def set_norm_momentum(model: nn.Module, momentum: float | None, updates: int) -> tuple[float, float] | None:
    """Set the momentum of all batch norms.

    MobileNetV3's momentum of 0.01 averages over hundreds of updates. A run of a few hundred updates would be evaluated
    with the statistics of its start.

    Args:
        model: the model to train.
        momentum: momentum of all norms; None increases only momenta that would average over more than `AVERAGED` of the
            run.
        updates: number of weight updates in the run.

    Returns:
        The smallest changed momentum, before and after; None if no momentum changed.
    """
    least = min(NORM_MOMENTUM, 1 / (AVERAGED * updates))
    changed = []
    for norm in model.modules():
        # A norm with momentum None averages over all batches with equal weight.
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.momentum is not None:
            own, norm.momentum = norm.momentum, max(norm.momentum, least) if momentum is None else momentum
            if norm.momentum != own:
                changed.append((own, norm.momentum))
    return min(changed, default=None)


def make_optimizer(model: nn.Module, configuration: Configuration) -> Optimizer:
    """Return the optimizer of all parameters, including frozen ones, which may be unfrozen later.

    Weight decay does not apply to norms and biases (arXiv 1812.01187, section 3.1). The head has the full learning
    rate, and each level `layer_decay` times the rate of the level after it (arXiv 2106.08254, appendix).
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
    """Return the highest learning rate of all parameter groups."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _level(name: str) -> str:
    """Return the level of a parameter: a stage of the backbone, "" for a backbone without stages, or the head."""
    part, *path = name.split(".")
    if part != "backbone":
        return HEAD
    return path[1] if path[0] == "stages" and len(path) > 2 else ""


@dataclass(frozen=True)
class Schedule:
    """A learning rate schedule with steps after every weight update and, for plateaus, after every epoch."""

    by_update: LambdaLR | LinearLR
    by_epoch: ReduceLROnPlateau | None = None

    @property
    def updates(self) -> int:
        """Number of weight updates so far."""
        return self.by_update.last_epoch

    def after_update(self) -> None:
        """Advance by one update."""
        self.by_update.step()

    def after_epoch(self, score: float) -> None:
        """Record the model's score (higher is better). Scores during the warmup are ignored."""
        warmup = self.by_update.total_iters if isinstance(self.by_update, LinearLR) else 0
        if self.by_epoch is not None and self.updates >= warmup:
            self.by_epoch.step(score)

    @property
    def _parts(self) -> list[Any]:
        return [self.by_update] if self.by_epoch is None else [self.by_update, self.by_epoch]

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state. If the run has become longer, learning rates follow this schedule, not the saved one."""
        for part, own in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(own)
        if isinstance(self.by_update, LambdaLR):
            groups = self.by_update.optimizer.param_groups
            for group, highest, factor in zip(groups, self.by_update.base_lrs, self.by_update.lr_lambdas, strict=True):
                group["lr"] = highest * factor(self.updates)


def make_schedule(optimizer: Optimizer, configuration: Configuration, updates: int) -> Schedule:
    """Return the schedule of a run: cosine (arXiv 1608.03983, without restarts) or plateau, after a warmup.

    Args:
        optimizer: the optimizer to schedule.
        configuration: settings of the run.
        updates: weight updates per epoch.

    Returns:
        The schedule.
    """
    warmup, total = round((configuration.warmup_epochs or 0.0) * updates), configuration.epochs * updates
    if configuration.schedule == "cosine":
        return Schedule(LambdaLR(optimizer, _cosine(warmup, total)))
    rise = LinearLR(optimizer, WARMUP_START if warmup else 1.0, total_iters=max(warmup, 1))
    plateau = ReduceLROnPlateau(optimizer, mode="max", factor=PLATEAU_FACTOR, patience=configuration.patience)
    return Schedule(rise, plateau)


def _cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Return a function from the number of an update (from 0) to the factor of the learning rate."""

    def factor(update: int) -> float:
        if update < warmup:
            return WARMUP_START + (1 - WARMUP_START) * update / warmup
        return (1 + math.cos(math.pi * min(1.0, (update - warmup) / max(1, total - warmup)))) / 2

    # A function, not a callable object: the scheduler would save an object's attributes in its state, and then a
    # resumed run could not have more epochs.
    return factor
