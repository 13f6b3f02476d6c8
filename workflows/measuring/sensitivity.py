"""The sensitivity of a quantised model's layers as a picture: a bar for each layer, most sensitive first."""

from pathlib import Path

from featuretap.runtimes.quantization.report import Report
from featuretap.workflows.training.plots import make_figure, save_figure

WIDTH, BAR = 7.0, 0.17
"""Inches."""


def write_sensitivity(report: Report, path: Path) -> None:
    """Draw the sensitivity of each layer as PNG; layers in float32 have another colour.

    Args:
        report: of a quantisation with a budget.
        path: of the PNG.
    """
    figure = make_figure(WIDTH, 1 + BAR * len(report.sensitivity))
    axes = figure.add_subplot()
    kept = set(report.in_float32)
    for dtype, colour in (("int8", "tab:blue"), ("float32", "tab:orange")):
        places = [place for place, name in enumerate(report.sensitivity) if (name in kept) == (dtype == "float32")]
        errors = list(report.sensitivity.values())
        if places:
            axes.barh(places, [errors[place] for place in places], color=colour, label=dtype)
    axes.set_yticks(range(len(report.sensitivity)), list(report.sensitivity), fontsize="x-small")
    axes.set_ylim(len(report.sensitivity) - 0.5, -0.5)
    axes.set_xlabel("relative error of the outputs with only this layer in 8-bit integers")
    axes.legend(title="computed in", fontsize="small")
    save_figure(figure, path)
