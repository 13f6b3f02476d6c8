"""A comparison as a picture: latency against parameters, bubbles as large as the multiply-adds."""

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
from featuretap.workflows.training.plots import DPI, make_figure, save_figure, shorten_name

PANEL = (5.6, 4.4)
"""Inches."""

LEGEND = 2.0
"""Inches beside the panels."""

COLUMNS = 3

MAXIMUM_AREA = 900.0
"""Area of the largest bubble, in square points."""

LOG_RATIO = 20.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""

GAP = 3.0
"""Points between a name and a bubble, or the frame."""

DISTANCES = tuple(GAP + 6 * step for step in range(20))
"""Points between a bubble and its name, tried in this order."""

SIDES = ((0, 1), (1, 0), (-1, 0), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Sides of a bubble for its name, to the right and up, tried in this order."""

HORIZONTAL = {0: "center", 1: "left", -1: "right"}
VERTICAL = {0: "center", 1: "bottom", -1: "top"}

Colour = tuple[float, float, float, float]


def write_picture(comparison: Comparison, path: Path) -> None:
    """Write the picture as PNG."""
    save_figure(draw_comparison(comparison), path)


def draw_comparison(comparison: Comparison) -> Figure:
    """Return the figure: a panel for each setting, a colour for each runtime and library."""
    by_setting = comparison.by_setting
    columns = min(COLUMNS, len(by_setting))
    rows = ceil(len(by_setting) / columns)
    figure = make_figure(PANEL[0] * columns + LEGEND, PANEL[1] * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(by_setting) :]:
        panel.remove()
    computed_by = dict.fromkeys(measurement.by for measurement in comparison.measurements)
    colours = {by: colormaps["tab10"](number % 10) for number, by in enumerate(computed_by)}
    largest = max(measurement.macs for measurement in comparison.measurements)
    for panel, (setting, measurements) in zip(panels, by_setting.items(), strict=False):
        panel.set_title(f"batch {setting.batch}, {'×'.join(map(str, setting.size))} pixels")
        _draw_bubbles(panel, measurements, colours, largest)
    machine = comparison.machine
    figure.suptitle(f"{machine.processor}, {machine.threads} thread{'s' * (machine.threads > 1)}", fontsize="medium")
    _draw_legends(figure, comparison.measurements, colours, largest)
    # Names are placed in free space, which is known after the layout.
    figure.draw_without_rendering()
    for panel, measurements in zip(panels, by_setting.values(), strict=False):
        _place_names(figure, panel, measurements, largest)
    return figure


def _draw_bubbles(
    panel: Axes, measurements: Sequence[Measurement], colours: Mapping[str, Colour], largest: int
) -> None:
    for same in _by_name(measurements).values():
        # A line joins the networks that compute the same maps.
        panel.plot([m.parameters for m in same], [_ms(m) for m in same], color="lightgrey", linewidth=1, zorder=1)
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
        panel.set_ylim(bottom=0)
    panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    panel.locator_params(axis="x", nbins=5)
    panel.grid(alpha=0.3)


def _draw_legends(
    figure: Figure, measurements: Sequence[Measurement], colours: Mapping[str, Colour], largest: int
) -> None:
    """Explain colours and sizes beside the panels."""

    def dot(colour: str | Colour, area: float, label: str) -> Line2D:
        style = {"marker": "o", "linewidth": 0, "markeredgewidth": 0, "alpha": 0.7}
        return Line2D([], [], color=colour, markersize=sqrt(area), label=label, **style)  # type: ignore[arg-type]

    smallest = min(measurement.macs for measurement in measurements)
    counts = dict.fromkeys((smallest, (smallest + largest) // 2, largest))
    figure.legend(
        handles=[dot(colour, MAXIMUM_AREA / 8, by) for by, colour in colours.items()],
        loc="outside right upper",
        title="computed by",
        frameon=False,
    )
    figure.legend(
        handles=[dot("grey", _area(count, largest), format_count(count)) for count in counts],
        loc="outside right lower",
        title="MACs of an image",
        frameon=False,
        labelspacing=1.6,
        handletextpad=1.4,
        borderpad=1.4,
    )


def _place_names(figure: Figure, panel: Axes, measurements: Sequence[Measurement], largest: int) -> None:
    """Write each network's name beside one of its bubbles, slow ones first, as near as there is room."""
    positions = {m: panel.transData.transform((m.parameters, _ms(m))) for m in measurements}
    radii = {m: sqrt(_area(m.macs, largest)) / 2 for m in measurements}
    taken = [Bbox([positions[m], positions[m]]).padded(radii[m] * DPI / 72) for m in measurements]
    for same in _by_name(measurements).values():
        ends = sorted(same, key=_ms)
        taken.append(Bbox([positions[ends[0]], positions[ends[-1]]]).padded(1))
    inside = panel.bbox.padded(-GAP)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for name, same in _by_name(measurements).items():
        radius = radii[same[0]]
        line = {"arrowstyle": "-", "color": "grey", "linewidth": 0.5, "shrinkA": 0, "shrinkB": radius}
        text = panel.annotate(
            shorten_name(name), (0, 0), (0, 0), textcoords="offset points", fontsize="small", arrowprops=line
        )
        text.set_in_layout(False)
        slowest_first = sorted(same, key=_ms, reverse=True)
        for distance, measurement, (x, y) in product(DISTANCES, slowest_first, SIDES):
            text.xy = measurement.parameters, _ms(measurement)
            text.set_position((x * (radius + distance), y * (radius + distance)))
            text.set(ha=HORIZONTAL[x], va=VERTICAL[y])
            text.update_positions(renderer)
            # Of the text alone, without its line.
            box = Text.get_window_extent(text, renderer)
            if all(map(inside.contains, *box.get_points().T)) and not box.count_overlaps(taken):
                break
        taken.append(box)


def _by_name(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    names = dict.fromkeys(measurement.name for measurement in measurements)
    return {name: [measurement for measurement in measurements if measurement.name == name] for name in names}


def _area(macs: int, largest: int) -> float:
    return MAXIMUM_AREA * macs / largest


def _ms(measurement: Measurement) -> float:
    return measurement.timing.median * 1000
