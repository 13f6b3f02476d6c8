"""A limit on what the integers may cost: the layers that cost most are computed in float32 until it holds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from featuretap.support.errors import ExportError, Hint, OptionError
from featuretap.support.progress import Begin

RELATIVE_ERROR = "relative error"
"""What a budget limits without labelled images."""

SENSITIVITY_IMAGES = 16
"""Images that the sensitivity of layers is measured on; more hardly change the order."""


class Score(NamedTuple):
    """A metric of a model on labelled images.

    Args:
        metric: its name.
        percent: its value, of which differences are points.
    """

    metric: str
    percent: float


Evaluate = Callable[[Path], Score]
"""Evaluates an exported file on labelled images."""


@dataclass(frozen=True)
class Budget:
    """A budget, and the part of it that is used.

    Args:
        measure: what is limited: "relative error", or "points of accuracy" with the name of the metric.
        limit: the maximum.
        loss: what the file loses by this measure; below 0 where it is better than the model in float32.
    """

    measure: str
    limit: float
    loss: float


@dataclass(frozen=True)
class Selection:
    """Layers in float32 with which a budget holds.

    Args:
        in_float: their names, most sensitive first.
        sensitivity: layer → relative error that it causes, largest first.
        loss: with these layers in float32.
    """

    in_float: Sequence[str] = ()
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    loss: float = 0.0


def check_budget(budget: float | None, labelled: bool) -> None:
    """Check a budget before any work.

    Raises:
        OptionError: it is not above 0 and finite, or there is none and labelled images are given.
    """
    if budget is None:
        if labelled:
            raise OptionError("labelled images have no effect without a budget", hint=Hint("give the", "budget="))
    elif isinstance(budget, bool) or not isinstance(budget, int | float) or not (isfinite(budget) and budget > 0):
        raise OptionError(
            "a budget must be above 0, a relative error or, with labelled images, points of their metric; got "
            f"{budget!r}"
        )


def select_layers(
    layers: Collection[str],
    limit: float,
    measure: str,
    error_of: Callable[[Collection[str]], float],
    loss_of: Callable[[Collection[str]], float],
    begin: Begin,
) -> Selection:
    """Select the smallest number of layers to compute in float32 with which a budget holds, most sensitive first.

    A layer's sensitivity is the error of the outputs with only this layer in integers.

    Args:
        layers: names of all.
        limit: of the loss.
        measure: of the loss, for the message.
        error_of: layers in float32 → relative error of the outputs, on a few images.
        loss_of: layers in float32 → loss.
        begin: begins a step.

    Raises:
        ExportError: the budget does not hold even with all layers in float32.
    """
    errors = {}
    done = begin("measuring the sensitivity of layers", len(layers))
    for layer in layers:
        errors[layer] = error_of([other for other in layers if other != layer])
        done()
    sensitivity = dict(sorted(errors.items(), key=itemgetter(1), reverse=True))
    ranked = list(sensitivity)
    losses: dict[int, float] = {}

    def holds(count: int) -> bool:
        losses[count] = loss_of(ranked[:count])
        return losses[count] <= limit

    begin("selecting layers to compute in float32", None)
    counts = range(len(ranked) + 1)
    count = 0 if holds(0) else bisect_left(counts, True, lo=1, key=holds)
    if count == len(counts):
        best, loss = min(losses.items(), key=itemgetter(1))
        raise ExportError(
            f"the budget of {limit:g} does not hold: the smallest loss is {loss:.3g} ({measure}), with "
            f"{best} of {len(ranked)} layers in float32",
            hint=Hint("give a larger", "budget="),
        )
    return Selection(tuple(ranked[:count]), sensitivity, losses[count])
