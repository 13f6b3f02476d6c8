"""Plots of training curves, confusion matrices and precision-recall curves.

They use matplotlib's object API, since `pyplot` has global state.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from featuretap.support.atomic_write import replace_files
from featuretap.support.text import one_line

DPI = 110
MAX_NAME = 28
"""Maximum number of characters of a class name."""

CURVES_SIZE = 11.0, 3.6
"""Width and height in inches, of three panels side by side."""

PRECISION_SIZE = 5.5, 4.2
"""Width and height in inches."""

MAX_CURVES = 10
"""Maximum number of classes in the legend of a precision-recall plot."""

NO_METRICS = frozenset({"epoch", "train_loss", "loss", "lr", "seconds", "images_per_second"})
LOG_RATIO = 20.0
"""Ratio of the largest to the smallest learning rate above which the axis is logarithmic."""

MAX_MARKERS = 40
"""Maximum number of epochs that are drawn with a marker each."""

MAX_VALUES = 20
"""Maximum number of classes for which the cells of a confusion matrix show their values."""

MAX_LABELS = 50
"""Maximum number of class names along a side of a confusion matrix; with more classes, only every nth is named."""

MIN_SIDE, MAX_SIDE = 3.2, 10.0
"""Side of a confusion matrix in inches."""


def make_figure(width: float, height: float) -> Figure:
    """Return an empty figure of `width` x `height` inches, with a layout that makes room for labels."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, cropped to its content."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Characters missing from the font are drawn as boxes; a warning about them would not help.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(content, format="png", bbox_inches="tight")
    replace_files({path: content.getvalue()})


def shorten_name(name: str) -> str:
    """Return a class name shortened to fit, with "$" escaped, since matplotlib would start a formula."""
    line = one_line(name)
    return (line if len(line) <= MAX_NAME else f"{line[: MAX_NAME - 1]}…").replace("$", r"\$")


def loss_of(row: Mapping[str, float]) -> float:
    """Return the validation loss of an epoch, or the training loss if there is no validation loss."""
    return row.get("loss", row["train_loss"])


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Plot losses, validation metrics and learning rate by epoch, and write a PNG to `path`.

    A dashed line marks the best epoch: the one with the highest value of the first metric, or among equals, with the
    lowest loss.
    """
    figure = make_figure(*CURVES_SIZE)
    losses, scores, rates = figure.subplots(1, 3)
    columns = list(history[0]) if history else []
    metrics = [name for name in columns if name.rpartition(".")[2] not in NO_METRICS]
    finite = [row for row in history if metrics and isfinite(row[metrics[0]])]
    best = max(finite, key=lambda row: (row[metrics[0]], -loss_of(row)), default=None)
    loss_labels = {"train_loss": "training", "loss": "validation"}
    _plot(losses, "loss", history, {name: label for name, label in loss_labels.items() if name in columns})
    _plot(scores, "validation metrics", history, {name: name for name in metrics})
    _plot(rates, "learning rate", history, {"lr": ""})
    if best is not None:
        scores.set_title(f"best {metrics[0]}: {best[metrics[0]]:.4f} (epoch {best['epoch']:.0f})")
        for panel in (losses, scores):
            panel.axvline(best["epoch"], color="gray", linestyle="--", linewidth=1, zorder=1)
    used = [row["lr"] for row in history if row["lr"] > 0]
    if used and max(used) > LOG_RATIO * min(used):
        rates.set_yscale("log")
    save_figure(figure, path)


def _plot(panel: Axes, title: str, history: Sequence[Mapping[str, float]], labels: Mapping[str, str]) -> None:
    """Plot columns of the history into a panel, with a legend of the non-empty labels."""
    epochs, marker = [row["epoch"] for row in history], "o" if len(history) <= MAX_MARKERS else ""
    for name, label in labels.items():
        panel.plot(epochs, [row.get(name, float("nan")) for row in history], marker=marker, markersize=3, label=label)
    panel.set_title(title)
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    panel.grid(alpha=0.3)
    panel.margins(x=0.02 if len(history) > 1 else 0.5)
    if any(labels.values()):
        panel.legend(fontsize="small", framealpha=0.8)


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Plot the confusion matrix of K classes, and write a PNG to `path`.

    Colors are fractions of the row. Up to 20 classes, cells also show percentages.

    Args:
        confusion: counts (K, K) by true class (row) and predicted class (column).
        classes: names of the classes.
        path: file to write.
    """
    count = len(classes)
    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    labels = range(0, count, -(-count // MAX_LABELS))
    names = [shorten_name(classes[label]) for label in labels]
    side = min(MAX_SIDE, max(MIN_SIDE, 0.5 * count if count <= MAX_VALUES else MAX_SIDE))
    # Leave room for names: a character is about 1/14 inch wide.
    margin = 0.8 + max(map(len, names)) / 14
    figure = make_figure(side + margin + 0.9, side + margin)
    axes = figure.add_subplot()
    # A square-root scale makes rare confusions visible.
    image = axes.imshow(fractions, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    size = 9 if len(names) <= 30 else 7
    axes.set_xticks(list(labels), names, rotation=90, fontsize=size)
    axes.set_yticks(list(labels), names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    unit = " (in cells: %)" if count <= MAX_VALUES else ""
    figure.colorbar(image, ax=axes, label=f"fraction of true class{unit}", fraction=0.046)
    if count <= MAX_VALUES:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            fraction = fractions[row, column]
            text = f"{100 * fraction:.0f}" if fraction >= 0.005 else "<1"
            color = "white" if fraction > 0.3 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path)


def draw_precision_recall(precisions: NDArray[np.float64], classes: Sequence[str], path: Path) -> None:
    """Plot precision-recall curves and their mean, and write a PNG to `path`.

    Args:
        precisions: precisions (K, 101) of K classes at recalls from 0 to 1; NaN for classes without objects.
        classes: names of the classes.
        path: file to write.
    """
    figure = make_figure(*PRECISION_SIZE)
    axes = figure.add_subplot()
    recalls = np.linspace(0, 1, precisions.shape[1])
    known = [place for place, row in enumerate(precisions) if not np.isnan(row).any()]
    for place in known:
        # A longer legend would hide the plot.
        label = shorten_name(classes[place]) if len(known) <= MAX_CURVES else None
        axes.plot(recalls, precisions[place], linewidth=1, alpha=0.8 if label else 0.3, label=label)
    if known:
        axes.plot(recalls, precisions[known].mean(0), color="black", linewidth=2, label="mean")
        axes.legend(fontsize="small", framealpha=0.8)
    axes.set_title("precision-recall at IoU 0.5")
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
