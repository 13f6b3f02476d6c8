"""Plot a comparison: latency against parameters, with bubble areas proportional to the multiply-adds."""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, ScalarFormatter

from featuretap.support.text import format_count
from featuretap.workflows.measuring.comparing import Comparison, Measurement
from featuretap.workflows.training.plots import make_figure, save_figure, shorten_name

PANEL = (5.6, 4.4)
"""Width and height of a panel in inches."""

LEGENDS = 4.6
"""Width of the legends in inches: names on the left, colors and sizes on the right."""

COLUMNS = 3

MAXIMUM_AREA = 900.0
"""Area of the largest bubble in square points."""

LOG_RATIO = 20.0
"""Ratio of the largest to the smallest value above which an axis is logarithmic."""

Color = tuple[float, float, float, float]


def write_picture(comparison: Comparison, path: Path) -> None:
    """Write the plot of a comparison as PNG."""
    save_figure(draw_comparison(comparison), path)


def draw_comparison(comparison: Comparison) -> Figure:
    """Draw a panel for each setting, with a color for each runtime or library and a number for each network.

    Args:
        comparison: the measurements.

    Returns:
        The figure.
    """
    by_setting = comparison.by_setting
    columns = min(COLUMNS, len(by_setting))
    rows = ceil(len(by_setting) / columns)
    figure = make_figure(PANEL[0] * columns + LEGENDS, PANEL[1] * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(by_setting) :]:
        panel.remove()
    computed_by = dict.fromkeys(measurement.by for measurement in comparison.measurements)
    colors = {by: colormaps["tab10"](number % 10) for number, by in enumerate(computed_by)}
    by_parameters = sorted(comparison.measurements, key=lambda measurement: measurement.parameters)
    names = list(dict.fromkeys(measurement.name for measurement in by_parameters))
    largest = max(measurement.macs for measurement in comparison.measurements)
    for panel, (setting, measurements) in zip(panels, by_setting.items(), strict=False):
        panel.set_title(f"batch {setting.batch}, {'×'.join(map(str, setting.size))} pixels")
        _draw_bubbles(panel, measurements, colors, largest)
        _draw_numbers(panel, measurements, names, largest)
    machine = comparison.machine
    figure.suptitle(f"{machine.processor}, {machine.threads} thread{'s' * (machine.threads > 1)}", fontsize="medium")
    _draw_legends(figure, comparison.measurements, colors, names, largest)
    return figure


def _draw_bubbles(panel: Axes, measurements: Sequence[Measurement], colors: Mapping[str, Color], largest: int) -> None:
    for by, color in colors.items():
        shown = [measurement for measurement in measurements if measurement.by == by]
        panel.scatter(
            [measurement.parameters for measurement in shown],
            [_ms(measurement) for measurement in shown],
            [_area(measurement.macs, largest) for measurement in shown],
            color=color,
            alpha=0.7,
            edgecolors="white",
            zorder=2,
        )
    panel.set_xlabel("parameters")
    panel.set_ylabel("latency (ms per call)")
    panel.margins(y=0.25)
    panel.set_xlim(0, 1.2 * max(measurement.parameters for measurement in measurements))
    times = [_ms(measurement) for measurement in measurements]
    if max(times) > LOG_RATIO * min(times):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(ScalarFormatter())
    else:
        panel.set_ylim(0, 1.25 * max(times))
    panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    panel.locator_params(axis="x", nbins=5)
    panel.grid(alpha=0.3)


def _draw_numbers(panel: Axes, measurements: Sequence[Measurement], names: Sequence[str], largest: int) -> None:
    """Connect the bubbles of each network with a line, and write its number above or below them in alternation."""
    for number, name in enumerate(names, start=1):
        same = sorted((measurement for measurement in measurements if measurement.name == name), key=_ms)
        panel.plot([m.parameters for m in same], [_ms(m) for m in same], color="lightgray", linewidth=1, zorder=1)
        # Alternate the side, since numbers of similar networks would overlap.
        end, side, align = (same[-1], 1, "bottom") if number % 2 else (same[0], -1, "top")
        offset = (0, side * (sqrt(_area(end.macs, largest)) / 2 + 1))
        point = (end.parameters, _ms(end))
        panel.annotate(str(number), point, offset, textcoords="offset points", ha="center", va=align, fontsize="small")


def _draw_legends(
    figure: Figure,
    measurements: Sequence[Measurement],
    colors: Mapping[str, Color],
    names: Sequence[str],
    largest: int,
) -> None:
    """Add the legends of colors, bubble sizes and numbers."""

    def dot(color: str | Color, size: float, label: str, marker: str = "o") -> Line2D:
        style = {"linewidth": 0, "markeredgewidth": 0, "alpha": 0.7}
        return Line2D([], [], color=color, marker=marker, markersize=size, label=label, **style)  # type: ignore[arg-type]

    smallest = min(measurement.macs for measurement in measurements)
    counts = dict.fromkeys((smallest, (smallest + largest) // 2, largest))
    figure.legend(
        handles=[dot(color, sqrt(MAXIMUM_AREA / 8), by) for by, color in colors.items()],
        loc="outside right upper",
        title="runtime or library",
        frameon=False,
    )
    figure.legend(
        handles=[dot("gray", sqrt(_area(count, largest)), format_count(count)) for count in counts],
        loc="outside right lower",
        title="MACs per image",
        frameon=False,
        labelspacing=1.6,
        handletextpad=1.4,
        borderpad=1.4,
    )
    figure.legend(
        handles=[dot("black", 6 * len(str(n)), shorten_name(name), f"${n}$") for n, name in enumerate(names, start=1)],
        loc="outside left upper",
        title="networks",
        frameon=False,
    )


def _area(macs: int, largest: int) -> float:
    return MAXIMUM_AREA * macs / largest


def _ms(measurement: Measurement) -> float:
    return measurement.timing.median * 1000
