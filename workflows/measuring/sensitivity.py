"""Plot the sensitivity of a quantized model's layers: one bar per layer, most sensitive first."""

from pathlib import Path

from featuretap.runtimes.quantization.report import Report
from featuretap.workflows.training.plots import make_figure, save_figure

WIDTH, BAR = 7.0, 0.17
"""Width of the plot and height of a bar in inches."""


def write_sensitivity(report: Report, path: Path) -> None:
    """Plot the sensitivity of each layer as PNG. Layers in float32 have a different color.

    Args:
        report: report of a quantization with a budget.
        path: path of the PNG file.
    """
    figure = make_figure(WIDTH, 1 + BAR * len(report.sensitivity))
    axes = figure.add_subplot()
    kept = set(report.in_float32)
    for dtype, color in (("int8", "tab:blue"), ("float32", "tab:orange")):
        places = [place for place, name in enumerate(report.sensitivity) if (name in kept) == (dtype == "float32")]
        errors = list(report.sensitivity.values())
        if places:
            axes.barh(places, [errors[place] for place in places], color=color, label=dtype)
    axes.set_yticks(range(len(report.sensitivity)), list(report.sensitivity), fontsize="x-small")
    axes.set_ylim(len(report.sensitivity) - 0.5, -0.5)
    axes.set_xlabel("relative error of the outputs if only this layer is quantized to int8")
    axes.legend(title="precision", fontsize="small")
    save_figure(figure, path)
