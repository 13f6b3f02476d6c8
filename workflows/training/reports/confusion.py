"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from numpy.typing import NDArray

from featuretap.workflows.training.reports.figures import figure_of, save_figure, shortened

__all__ = ["draw_confusion"]

WITH_NUMBERS = 20
"""Classes up to which each cell has room for a number."""

MOST_NAMES = 50
"""Names that fit along a side; of more classes, every second, third … is named."""

LEAST, MOST = 3.2, 10.0
"""Inches of a side of the matrix."""


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Draw how often what is of the class of the row was taken for that of the column, as a PNG.

    Colours are shares of the row; the numbers, of up to twenty classes, are percentages.

    Args:
        confusion: (K, K) counts.
        classes: their K names.
        path: of the picture.

    Raises:
        WeightsError: the disk does not take it.
    """
    count = len(classes)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    step = -(-count // MOST_NAMES)
    named = range(0, count, step)
    names = [shortened(classes[label]) for label in named]
    side = min(MOST, max(LEAST, 0.5 * count if count <= WITH_NUMBERS else MOST))
    # Room for names: a letter is about a fourteenth of an inch wide.
    margin = 0.8 + max(map(len, names)) / 14
    figure = figure_of(side + margin + 0.9, side + margin)
    axes = figure.add_subplot()
    # By the root, so that what is rare can be seen beside what is right.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    size = 9 if len(names) <= 30 else 7
    axes.set_xticks(list(named), names, rotation=90, fontsize=size)
    axes.set_yticks(list(named), names, fontsize=size)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    figure.colorbar(picture, ax=axes, label="share of the class", fraction=0.046)
    if count <= WITH_NUMBERS:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            share = shares[row, column]
            colour = "white" if share > 0.3 else "black"
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    save_figure(figure, path)
