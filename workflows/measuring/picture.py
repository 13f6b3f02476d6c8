"""A comparison as a picture: latency against parameters, bubbles as large as the multiply-adds."""

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
"""Inches."""

LEGENDS = 4.6
"""Inches beside the panels: names to the left, colours and sizes to the right."""

COLUMNS = 3

MAXIMUM_AREA = 900.0
"""Area of the largest bubble, in square points."""

LOG_RATIO = 20.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""

Colour = tuple[float, float, float, float]


def write_picture(comparison: Comparison, path: Path) -> None:
    """Write the picture as PNG."""
    save_figure(draw_comparison(comparison), path)


def draw_comparison(comparison: Comparison) -> Figure:
    """Return the figure: a panel for each setting, a colour for each runtime and library, a number for each network."""
    by_setting = comparison.by_setting
    columns = min(COLUMNS, len(by_setting))
    rows = ceil(len(by_setting) / columns)
    figure = make_figure(PANEL[0] * columns + LEGENDS, PANEL[1] * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(by_setting) :]:
        panel.remove()
    computed_by = dict.fromkeys(measurement.by for measurement in comparison.measurements)
    colours = {by: colormaps["tab10"](number % 10) for number, by in enumerate(computed_by)}
    by_parameters = sorted(comparison.measurements, key=lambda measurement: measurement.parameters)
    names = list(dict.fromkeys(measurement.name for measurement in by_parameters))
    largest = max(measurement.macs for measurement in comparison.measurements)
    for panel, (setting, measurements) in zip(panels, by_setting.items(), strict=False):
        panel.set_title(f"batch {setting.batch}, {'×'.join(map(str, setting.size))} pixels")
        _draw_bubbles(panel, measurements, colours, largest)
        _draw_numbers(panel, measurements, names, largest)
    machine = comparison.machine
    figure.suptitle(f"{machine.processor}, {machine.threads} thread{'s' * (machine.threads > 1)}", fontsize="medium")
    _draw_legends(figure, comparison.measurements, colours, names, largest)
    return figure


def _draw_bubbles(
    panel: Axes, measurements: Sequence[Measurement], colours: Mapping[str, Colour], largest: int
) -> None:
    for by, colour in colours.items():
        shown = [measurement for measurement in measurements if measurement.by == by]
        panel.scatter(
            [measurement.parameters for measurement in shown],
            [_ms(measurement) for measurement in shown],
            [_area(measurement.macs, largest) for measurement in shown],
            color=colour,
            alpha=0.7,
            edgecolors="white",
            zorder=2,
        )
    panel.set_xlabel("parameters")
    panel.set_ylabel("ms a call")
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
    """Join the bubbles of each network with a line, and write its number above or below them, in turn."""
    for number, name in enumerate(names, start=1):
        same = sorted((measurement for measurement in measurements if measurement.name == name), key=_ms)
        panel.plot([m.parameters for m in same], [_ms(m) for m in same], color="lightgrey", linewidth=1, zorder=1)
        # Networks next to each other are often alike, and their numbers would cover one another.
        end, side, align = (same[-1], 1, "bottom") if number % 2 else (same[0], -1, "top")
        offset = (0, side * (sqrt(_area(end.macs, largest)) / 2 + 1))
        point = (end.parameters, _ms(end))
        panel.annotate(str(number), point, offset, textcoords="offset points", ha="center", va=align, fontsize="small")


def _draw_legends(
    figure: Figure,
    measurements: Sequence[Measurement],
    colours: Mapping[str, Colour],
    names: Sequence[str],
    largest: int,
) -> None:
    """Explain colours, sizes and numbers beside the panels."""

    def dot(colour: str | Colour, size: float, label: str, marker: str = "o") -> Line2D:
        style = {"linewidth": 0, "markeredgewidth": 0, "alpha": 0.7}
        return Line2D([], [], color=colour, marker=marker, markersize=size, label=label, **style)  # type: ignore[arg-type]

    smallest = min(measurement.macs for measurement in measurements)
    counts = dict.fromkeys((smallest, (smallest + largest) // 2, largest))
    figure.legend(
        handles=[dot(colour, sqrt(MAXIMUM_AREA / 8), by) for by, colour in colours.items()],
        loc="outside right upper",
        title="computed by",
        frameon=False,
    )
    figure.legend(
        handles=[dot("grey", sqrt(_area(count, largest)), format_count(count)) for count in counts],
        loc="outside right lower",
        title="MACs of an image",
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
