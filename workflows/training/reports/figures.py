"""Figures without a screen: matplotlib's objects, and none of the state that `pyplot` shares with the whole process."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from featuretap.support.atomic_write import replace_files
from featuretap.support.text import one_line

__all__ = ["figure_of", "save_figure", "shortened"]

DOTS = 110
"""Pixels an inch."""

LONGEST_NAME = 28


def figure_of(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, which makes room for whatever its text needs."""
    figure = Figure(figsize=(width, height), dpi=DOTS, layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, as large as what is on it.

    Raises:
        WeightsError: the disk does not take it.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that its font has not are drawn as boxes; nobody can do anything about that here.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(content, format="png", bbox_inches="tight")
    replace_files({path: content.getvalue()})


def shortened(name: str) -> str:
    """Return a name of a class as there is room for it, without what matplotlib would take for formulas."""
    line = one_line(name)
    cut = line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"
    return cut.replace("$", r"\$")
