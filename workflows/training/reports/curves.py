"""The curves of a run: losses, measures and learning rate by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from featuretap.workflows.training.reports.figures import figure_of, save_figure

__all__ = ["draw_curves"]

WIDTH, HEIGHT = 11.0, 3.6
"""Inches; three panels side by side."""

NO_MEASURES = frozenset({"epoch", "train_loss", "loss", "lr", "seconds", "images_per_second"})

WIDE = 20.0
"""Ratio of the largest to the smallest learning rate from which the axis is logarithmic."""

MARKED = 40
"""Epochs up to which each has a dot of its own."""

LOSSES = {"train_loss": "training", "loss": "validation"}


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw how losses, measures and the learning rate went, as a PNG.

    The best epoch, a dashed line, is the first that has the highest value of the first measure.

    Args:
        history: a row for each epoch: "epoch" from 1, "train_loss", "loss" of the validation where there is one,
            measures from 0 to 1 such as "accuracy", the deciding one first, and "lr".
        path: of the picture.

    Raises:
        WeightsError: the disk does not take it.
    """
    figure = figure_of(WIDTH, HEIGHT)
    losses, scores, rates = figure.subplots(1, 3)
    measures = [name for name in (history[0] if history else {}) if name not in NO_MEASURES]
    best = _best(history, measures[0]) if measures else None
    _draw(losses, history, {name: words for name, words in LOSSES.items() if history and name in history[0]})
    _draw(scores, history, {name: name for name in measures})
    _draw(rates, history, {"lr": "learning rate"})
    for panel, title in ((losses, "loss"), (scores, "validation"), (rates, "learning rate")):
        panel.set_title(title)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        panel.grid(alpha=0.3)
        panel.margins(x=0.02 if len(history) > 1 else 0.5)
        if best is not None and panel is not rates:
            panel.axvline(best["epoch"], color="grey", linestyle="--", linewidth=1, zorder=1)
    if best is not None:
        scores.set_title(f"best: {measures[0]} {best[measures[0]]:.4f} in epoch {best['epoch']:.0f}")
    for panel in (losses, scores):
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize="small", framealpha=0.8)
    used = [row["lr"] for row in history if row["lr"] > 0]
    if used and max(used) > WIDE * min(used):
        rates.set_yscale("log")
    save_figure(figure, path)


def _draw(panel: Axes, history: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> None:
    marker = "o" if len(history) <= MARKED else ""
    epochs = [row["epoch"] for row in history]
    for name, words in names.items():
        panel.plot(epochs, [row.get(name, float("nan")) for row in history], marker=marker, markersize=3, label=words)


def _best(history: Sequence[Mapping[str, float]], measure: str) -> Mapping[str, float] | None:
    rated = [row for row in history if isfinite(row[measure])]
    return max(rated, key=lambda row: row[measure], default=None)
