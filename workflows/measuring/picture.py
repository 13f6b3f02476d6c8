"""A comparison as a picture: latency against parameters, a bubble for each contender, as large as its multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil, sqrt
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, LogLocator, ScalarFormatter
from matplotlib.transforms import Bbox

from featuretap.support.text import format_count
from featuretap.workflows.measuring.comparing import Comparison, Measurement
from featuretap.workflows.training.reports.plots import DPI, make_figure, save_figure, shorten_name

__all__ = ["draw", "write_picture"]

PANEL = (5.6, 4.4)
"""Inches."""

LEGEND = 2.0
"""Inches beside the panels."""

COLUMNS = 3

LARGEST = 900.0
"""Area of the largest bubble, in square points."""

WIDE = 20.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""

BESIDE = 3.0
"""Points between a name and a bubble, or the frame."""

DISTANCES = tuple(BESIDE + 6 * step for step in range(20))
"""Points between a bubble and its name, tried in this order."""

SIDES = ((0, 1), (1, 0), (-1, 0), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Where a name stands beside a bubble, to the right and up, tried in this order."""

HORIZONTAL = {0: "center", 1: "left", -1: "right"}
VERTICAL = {0: "center", 1: "bottom", -1: "top"}

Colours = Mapping[str, tuple[float, float, float, float]]


def write_picture(comparison: Comparison, path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        WeightsError: the disk does not take it.
    """
    save_figure(draw(comparison), path)


def draw(comparison: Comparison) -> Figure:
    """Return the figure: a panel for each setting, a colour for each runtime and library."""
    by_setting = comparison.by_setting
    columns = min(COLUMNS, len(by_setting))
    rows = ceil(len(by_setting) / columns)
    figure = make_figure(PANEL[0] * columns + LEGEND, PANEL[1] * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(by_setting) :]:
        panel.remove()
    computed_by = dict.fromkeys(measured.by for measured in comparison.measurements)
    colours = {by: colormaps["tab10"](number % 10) for number, by in enumerate(computed_by)}
    largest = max(measured.macs for measured in comparison.measurements)
    for panel, (setting, measurements) in zip(panels, by_setting.items(), strict=False):
        panel.set_title(f"batch {setting.batch}, {'×'.join(map(str, setting.size))} pixels")
        _draw_bubbles(panel, measurements, colours, largest)
    machine = comparison.machine
    figure.suptitle(f"{machine.processor}, {machine.threads} thread{'s' * (machine.threads > 1)}", fontsize="medium")
    _explain(figure, comparison.measurements, colours, largest)
    # Names are put where nothing else is, which is known once everything has its place.
    figure.draw_without_rendering()
    for panel, measurements in zip(panels, by_setting.values(), strict=False):
        _name_bubbles(figure, panel, measurements, largest)
    return figure


def _draw_bubbles(panel: Axes, measurements: Sequence[Measurement], colours: Colours, largest: int) -> None:
    for same in _by_name(measurements).values():
        # A line joins what computes the same maps.
        panel.plot(
            [m.parameters for m in same], [_milliseconds(m) for m in same], color="lightgrey", linewidth=1, zorder=1
        )
    for by, colour in colours.items():
        shown = [measured for measured in measurements if measured.by == by]
        panel.scatter(
            [measured.parameters for measured in shown],
            [_milliseconds(measured) for measured in shown],
            [_area(measured.macs, largest) for measured in shown],
            color=colour,
            alpha=0.7,
            edgecolors="white",
            zorder=2,
        )
    panel.set_xlabel("parameters")
    panel.set_ylabel("ms a call")
    panel.margins(y=0.25)
    panel.set_xlim(0, 1.2 * max(measured.parameters for measured in measurements))
    times = [_milliseconds(measured) for measured in measurements]
    if max(times) > WIDE * min(times):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(ScalarFormatter())
    else:
        panel.set_ylim(bottom=0)
    panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    panel.locator_params(axis="x", nbins=5)
    panel.grid(alpha=0.3)


def _explain(figure: Figure, measurements: Sequence[Measurement], colours: Colours, largest: int) -> None:
    """Say beside the panels what colours and sizes mean."""
    dots = [_dot(colour, LARGEST / 8, by) for by, colour in colours.items()]
    smallest = min(measured.macs for measured in measurements)
    counts = dict.fromkeys((smallest, (smallest + largest) // 2, largest))
    bubbles = [_dot("grey", _area(count, largest), format_count(count)) for count in counts]
    figure.legend(handles=dots, loc="outside right upper", title="computed by", frameon=False)
    figure.legend(
        handles=bubbles,
        loc="outside right lower",
        title="MACs of an image",
        frameon=False,
        labelspacing=1.6,
        handletextpad=1.4,
        borderpad=1.4,
    )


def _dot(colour: str | tuple[float, float, float, float], area: float, label: str) -> Line2D:
    return Line2D(
        [], [], color=colour, alpha=0.7, marker="o", markersize=sqrt(area), linewidth=0, markeredgewidth=0, label=label
    )


def _name_bubbles(figure: Figure, panel: Axes, measurements: Sequence[Measurement], largest: int) -> None:
    """Write each network's name beside one of its bubbles, slow ones first, as near as there is room."""
    taken = [_box(panel, measured, largest) for measured in measurements]
    for same in _by_name(measurements).values():
        ends = [_pixels(panel, measured) for measured in sorted(same, key=_milliseconds)]
        taken.append(Bbox([ends[0], ends[-1]]).padded(1))
    inside = panel.bbox.padded(-BESIDE)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for name, same in _by_name(measurements).items():
        radius = sqrt(_area(same[0].macs, largest)) / 2
        line = {"arrowstyle": "-", "color": "grey", "linewidth": 0.5, "shrinkA": 0, "shrinkB": radius}
        text = panel.annotate(
            shorten_name(name), (0, 0), (0, 0), textcoords="offset points", fontsize="small", arrowprops=line
        )
        text.set_in_layout(False)
        slowest_first = sorted(same, key=_milliseconds, reverse=True)
        for distance, measured, (x, y) in product(DISTANCES, slowest_first, SIDES):
            text.xy = measured.parameters, _milliseconds(measured)
            text.set_position((x * (radius + distance), y * (radius + distance)))
            text.set(ha=HORIZONTAL[x], va=VERTICAL[y])
            text.update_positions(renderer)
            # Of the text alone, without its line.
            box = Text.get_window_extent(text, renderer)
            if all(map(inside.contains, *box.get_points().T)) and not box.count_overlaps(taken):
                break
        taken.append(box)


def _box(panel: Axes, measured: Measurement, largest: int) -> Bbox:
    """Return the place of a bubble on the page, in pixels."""
    x, y = _pixels(panel, measured)
    radius = sqrt(_area(measured.macs, largest)) / 2 * DPI / 72
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _pixels(panel: Axes, measured: Measurement) -> tuple[float, float]:
    x, y = panel.transData.transform((measured.parameters, _milliseconds(measured)))
    return float(x), float(y)


def _by_name(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    names = dict.fromkeys(measured.name for measured in measurements)
    return {name: [measured for measured in measurements if measured.name == name] for name in names}


def _area(macs: int, largest: int) -> float:
    return LARGEST * macs / largest


def _milliseconds(measured: Measurement) -> float:
    return measured.timing.median * 1000
