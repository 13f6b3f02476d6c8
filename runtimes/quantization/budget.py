"""Accuracy budgets: the most sensitive layers stay in float32 until the loss is within the limit."""

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
"""The measure that a budget limits if no labeled images are given."""

SENSITIVITY_IMAGES = 16
"""Number of images for the sensitivity of layers. More images hardly change the order."""


class Score(NamedTuple):
    """A metric on labeled images.

    Args:
        metric: name of the metric.
        percent: value in percent, so that differences are percentage points.
        images: number of labeled images.
    """

    metric: str
    percent: float
    images: int


Evaluate = Callable[[Path], Score]
"""Evaluates an exported file on labeled images."""


@dataclass(frozen=True)
class Budget:
    """A budget and the loss of the written file.

    Args:
        measure: the limited quantity, "relative error" or "points of" and the name of the metric.
        limit: maximum loss.
        loss: loss of the file, negative if the file scores better than the float32 model.
        metric: name of the metric; "" without labeled images.
        scores: "float32" and "int8" → metric of the model in percent; empty without labeled images.
        images: number of labeled images that the metric was measured on.
    """

    measure: str
    limit: float
    loss: float
    metric: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    images: int = 0


@dataclass(frozen=True)
class Selection:
    """The layers that stay in float32 to meet a budget.

    Args:
        in_float: layer names, most sensitive first.
        sensitivity: layer → relative error of the outputs if only this layer is quantized, largest first.
        loss: loss of the model with these layers in float32.
    """

    in_float: Sequence[str] = ()
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    loss: float = 0.0


def check_budget(budget: float | None, labeled: bool) -> None:
    """Check a budget before any work starts.

    Args:
        budget: the limit, or None for no budget.
        labeled: whether labeled images are given.

    Raises:
        OptionError: the budget is not positive and finite, or labeled images are given without a budget.
    """
    if budget is None:
        if labeled:
            raise OptionError("labeled images have no effect without a budget", hint=Hint("set", "budget="))
    elif isinstance(budget, bool) or not isinstance(budget, int | float) or not (isfinite(budget) and budget > 0):
        raise OptionError(
            "the budget must be a positive number: a relative error, or points of the metric if labeled images are "
            f"given; got {budget!r}"
        )


def select_layers(
    layers: Collection[str],
    limit: float,
    measure: str,
    error_of: Callable[[Collection[str]], float],
    loss_of: Callable[[Collection[str]], float],
    begin: Begin,
) -> Selection:
    """Select the fewest layers that must stay in float32 to meet a budget, most sensitive first.

    The sensitivity of a layer is the relative error of the outputs if only that layer is quantized.

    Args:
        layers: names of all quantized layers.
        limit: maximum loss.
        measure: name of the loss, for the error message.
        error_of: maps the layers in float32 to the relative error of the outputs on a few images.
        loss_of: maps the layers in float32 to the loss.
        begin: starts a progress step.

    Returns:
        The selected layers, the sensitivity of all layers, and the loss.

    Raises:
        ExportError: the budget is not met even with all layers in float32.
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
            f"the budget of {limit:g} cannot be met: the smallest loss is {loss:.3g} ({measure}), with "
            f"{best} of {len(ranked)} layers in float32",
            hint=Hint("set a larger", "budget="),
        )
    return Selection(tuple(ranked[:count]), sensitivity, losses[count])
