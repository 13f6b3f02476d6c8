"""The chart of the zoo as SVG: accuracy and multiply-adds of the backbone. It works without JavaScript.

Positions are in percent of the drawing and text sizes in pixels, so the chart fits any width with one text size. Labels
are therefore placed for two ranges of widths, and the style sheet shows one of the two sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

from docs.builder.zoo_rows import SIZE, Row
from featuretap.support.text import format_count

__all__ = ["COLORS", "SHAPES", "draw_scatter", "identity", "mark"]

SHAPES = (
    "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0z",  # circle
    "M-5-5h10v10h-10z",  # square
    "M0-6.5L6 4.5H-6z",  # triangle
    "M0-7L6.5 0L0 7L-6.5 0z",  # diamond
    "M0 6.5L6-4.5H-6z",  # triangle on its head
    "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",  # plus
    "M0-6.5L6.2-2L3.8 5.3H-3.8L-6.2-2z",  # pentagon
    "M-6-2.5L-2.5-6L0-3.5L2.5-6L6-2.5L3.5 0L6 2.5L2.5 6L0 3.5L-2.5 6L-6 2.5L-3.5 0z",  # saltire
)
COLORS = 7
"""Number of colors in the style sheet. With 8 shapes and 7 colors, 56 families get different marks."""

HEIGHT = 440
"""Height of the drawing in pixels, as in the style sheet."""
WIDE, NARROW = range(820, 1400, 20), range(230, 900, 10)
"""Widths of the drawing in pixels that labels are placed for, on wide and on other screens."""
LETTER, LINE, RADIUS = 6.9, 15, 7
"""Width and height of a letter and half the size of a mark, in pixels, rounded up."""


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Return whether two boxes overlap.

        Args:
            other: the other box.

        Returns:
            True if they overlap.
        """
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


class Scale:
    """A scale from values to fractions of the drawing, with `low` at 0 and `high` at 1."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def identity(row: Row) -> str:
    """Return the id of a row's element."""
    return "zoo-" + "".join(c if c.isalnum() or c in "._-" else f"-{ord(c):x}-" for c in row.key)


def mark(family: int) -> str:
    """Return the shape of a family in its color, centered on the origin."""
    return f'<path class="zoo-mark zoo-color-{family % COLORS}" d="{SHAPES[family % len(SHAPES)]}"/>'


def draw_scatter(rows: Iterable[Row], families: Sequence[str]) -> str:
    """Return the `<svg>` of all rows with a top-1 accuracy, sorted by multiply-adds, or "" without such rows.

    Args:
        rows: rows of the zoo.
        families: all families, in the order of their marks.

    Returns:
        The SVG element.
    """
    points = sorted(
        (row for row in rows if row.top_1 is not None and row.measured_macs),
        key=lambda row: (row.measured_macs or 0, row.top_1 or 0, row.key),
    )
    if not points:
        return ""
    macs, accuracies = [log10(row.measured_macs or 1) for row in points], [row.top_1 or 0 for row in points]
    # Some margin on both sides, and multiples of five percent at top and bottom.
    x = Scale(min(macs) - 0.12, max(macs) + 0.12)
    y = Scale(5 * floor((min(accuracies) - 1) / 5), 5 * ceil((max(accuracies) + 1) / 5))
    places = [(x(a), 1 - y(b)) for a, b in zip(macs, accuracies, strict=True)]
    return (
        '<svg class="zoo-scatter" role="group" aria-labelledby="zoo-caption">'
        + '<g class="zoo-axes" aria-hidden="true">'
        + "".join([*_accuracies(y), *_multiply_adds(x)])
        + "</g>"
        + '<g class="zoo-labels" aria-hidden="true">'
        + "".join([*_labels(points, places, "wide", WIDE), *_labels(points, places, "narrow", NARROW)])
        + "</g>"
        + "".join(_point(row, place, families.index(row.family)) for row, place in zip(points, places, strict=True))
        + "</svg>"
    )


def _point(row: Row, place: tuple[float, float], family: int) -> str:
    backbone, model = format_count(row.parameters), format_count(row.model_parameters)
    size = "" if row.crop == SIZE else f" at {row.crop}×{row.crop}"
    facts = {
        "name": row.name,
        "weights": row.tag,
        "accuracy": f"{row.top_1} % top-1",
        "macs": f"{format_count(row.measured_macs)} multiply-adds{size}",
        "parameters": f"{backbone} parameters, {model} with classifier",
    }
    data = " ".join(f'data-{key}="{escape(fact)}"' for key, fact in facts.items())
    return (
        f'<a class="zoo-point" href="#{identity(row)}" aria-label="{escape(", ".join(facts.values()))}" {data}>'
        f'<svg x="{place[0]:.2%}" y="{place[1]:.2%}" overflow="visible">'
        f'<circle class="zoo-ring" r="12"/>{mark(family)}</svg></a>'
    )


def _accuracies(y: Scale) -> Iterator[str]:
    for value in range(int(y.low), int(y.high) + 1, 5):
        place = f"{1 - y(value):.2%}"
        yield f'<line class="zoo-grid" x1="0" x2="100%" y1="{place}" y2="{place}"/>'
        yield f'<text x="-8" y="{place}" dy="4" text-anchor="end">{value}</text>'
    yield '<text class="zoo-axis" x="-40" y="-12">top-1, %</text>'


def _multiply_adds(x: Scale) -> Iterator[str]:
    steps = [factor * 10**power for power in range(3, 16) for factor in (1, 2, 5)]
    inside = [step for step in steps if x.low <= log10(step) <= x.high]
    narrow = set(_apart(inside, x, NARROW[0]))
    for value in inside:
        place, kind = f"{x(log10(value)):.2%}", "" if value in narrow else ' class="zoo-between"'
        yield f'<line class="zoo-grid" x1="{place}" x2="{place}" y1="0" y2="100%"/>'
        yield f'<text x="{place}" y="100%" dy="20" text-anchor="middle"{kind}>{_tick(value)}</text>'
    yield '<text class="zoo-axis" x="100%" y="100%" dy="42" text-anchor="end">multiply-adds (log scale)</text>'


def _apart(values: Iterable[int], x: Scale, width: int) -> Iterator[int]:
    """Yield the values whose labels do not overlap the previous label at a width."""
    end = float("-inf")
    for value in values:
        middle, half = x(log10(value)) * width, len(_tick(value)) * LETTER / 2
        if middle - half > end:
            yield value
            end = middle + half + LETTER


def _tick(value: int) -> str:
    size, unit = next((size, unit) for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if value >= size)
    return f"{value // size} {unit}"


def _labels(points: Sequence[Row], places: Sequence[tuple[float, float]], kind: str, widths: range) -> Iterator[str]:
    """Yield a label for each backbone whose name fits next to its best point at all widths."""
    taken = {width: [_around(place, width) for place in places] for width in widths}
    best: dict[str, int] = {}
    for index, row in enumerate(points):
        best[row.name] = index
    for index in sorted(best.values(), key=lambda index: points[index].top_1 or 0, reverse=True):
        name = points[index].name.rpartition("/")[2]
        for dx, dy, anchor in ((0, -10, "middle"), (11, 4, "start"), (-11, 4, "end"), (0, 20, "middle")):
            boxes = {width: _of_label(name, places[index], dx, dy, anchor, width) for width in widths}
            if all(_fits(box, taken[width], width) for width, box in boxes.items()):
                for width, box in boxes.items():
                    taken[width].append(box)
                x, y = places[index]
                yield (
                    f'<text class="zoo-{kind}" data-name="{escape(points[index].name)}" x="{x:.2%}" y="{y:.2%}" '
                    f'dx="{dx}" dy="{dy}" text-anchor="{anchor}">{escape(name)}</text>'
                )
                break


def _around(place: tuple[float, float], width: int) -> Box:
    x, y = place[0] * width, place[1] * HEIGHT
    return Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)


def _of_label(name: str, place: tuple[float, float], dx: int, dy: int, anchor: str, width: int) -> Box:
    long = len(name) * LETTER
    left = place[0] * width + dx - {"start": 0, "middle": long / 2, "end": long}[anchor]
    bottom = place[1] * HEIGHT + dy + 3
    return Box(left, bottom - LINE, left + long, bottom)


def _fits(box: Box, taken: Iterable[Box], width: int) -> bool:
    inside = box.left >= 0 and box.right <= width and box.top >= 0 and box.bottom <= HEIGHT
    return inside and not any(map(box.meets, taken))
