"""The zoo page: every backbone of the catalogue and its weights, as a scatter and a table that need no script.

The script (`docs/assets/zoo.js`) adds sorting, filtering, and the way between the two; what it reads is in `data-`
attributes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from docs.builder.zoo_rows import LEVELS, SIZE, Row, rows
from docs.builder.zoo_scatter import drawn, identity, mark
from featuretap.registry import Registry
from featuretap.support.text import format_count

__all__ = ["COLUMNS", "Column", "page"]

Value = str | int | float | None

PROSE = """\
---
title: Zoo
hide: [navigation, toc]
---

# Zoo

Every backbone that this catalogue builds by name, with its published weights, and some of torchvision's classifiers to
compare them with. A row is a backbone with one set of weights; its last column is the line that builds it.

"""

NOTES = f"""

## What the numbers are

- **Accuracy is what the publisher states**, and nothing here was measured again: top-1 on ImageNet-1k in percent for
  classifiers, box AP on COCO for detectors, mean IoU for segmenters. Only top-1 is in the scatter.
- **Multiply-adds** (MACs) are counted by featuretap, for every row alike: convolutions and linear layers,
  squeeze-excite's included, and nothing else. The table has them for one image of {SIZE}×{SIZE} pixels, the scatter for
  the crop that the accuracy is stated for. Detectors and segmenters run at sizes of their own, and have none here.
- **Parameters** include batch norm's, and are those of the whole model: with the 1000-class classifier, or with the
  head that the weights were trained with.
- **Channels** are those of the taps `C1` to `C5`, the last map of each stride.
- **Licence and size** are the publisher's too; megabytes are 10⁶ bytes. torchvision states no licence for its weights;
  what is given is that of the package.
- **torchvision's rows** are classifiers that consist of a pooled C5 and one linear layer. Its MobileNets are the
  catalogue's own; `featuretap list 'torchvision/*'` names the rest. The lines of these rows build the feature maps, and
  leave out the classifier.
"""


class Column(NamedTuple):
    """A column: its key in the script, its title, its words for a screen reader, a row's value, and its HTML."""

    key: str
    title: str
    words: str
    value: Callable[[Row], Value]
    shown: Callable[[Row], str]

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers."""
        return self.key not in TEXTS


TEXTS = {"name", "weights", "licence", "plugin"}


def page(found: Sequence[Row] | None = None) -> str:
    """Return the Markdown of the zoo page.

    Args:
        found: the rows; by default those of featuretap's own plugins, whatever else is installed.
    """
    listed = rows(Registry(discover=False)) if found is None else found
    families = list(dict.fromkeys(row.family for row in listed))
    scatter = drawn(listed, families)
    html = [
        '<div class="zoo">',
        *_filters(listed, families),
        *(_figure(scatter, families, listed) if scatter else ()),
        *_table(listed),
        "</div>",
    ]
    return PROSE + "\n".join(html) + NOTES


def _plain(text: str) -> str:
    """Return somebody's text as HTML on one line: a blank line would end the block in Markdown."""
    return escape(" ".join(text.split()))


def _broken(name: str) -> str:
    """Return a name as HTML that may be broken behind its parts."""
    return _plain(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _weights(row: Row) -> str:
    if not row.tag:
        return "–"
    size = f"{row.megabytes:.1f} MB" if row.megabytes else ""
    kind = "" if row.head == "classification" else f"head {row.head}"
    crop = f"{row.crop}×{row.crop}" if row.crop else ""
    about = ", ".join(word for word in (kind, size, crop) if word)
    return f"{_broken(row.tag)}<small>{_plain(about)}</small>"


def _accuracy(row: Row) -> str:
    return "–" if row.top_1 is None else f"{row.top_1:.2f}"


def _other(row: Row) -> float | None:
    return row.accuracy if row.measure != "top-1" else None


def _other_shown(row: Row) -> str:
    return "–" if _other(row) is None else f"{row.accuracy:.1f}<small>{_plain(row.measure)}</small>"


def _level(index: int) -> Column:
    def value(row: Row) -> int | None:
        return row.channels[index]

    level = LEVELS[index]
    return Column(level.lower(), level, f"channels of {level}", value, lambda row: str(value(row) or "–"))


COLUMNS = (
    Column("name", "Backbone", "backbone", lambda row: row.name, lambda row: _broken(row.name)),
    Column("weights", "Weights", "weights", lambda row: row.tag, _weights),
    Column(
        "parameters", "Parameters", "parameters", lambda row: row.parameters, lambda row: format_count(row.parameters)
    ),
    Column("macs", "MACs", "multiply-adds", lambda row: row.macs, lambda row: format_count(row.macs)),
    *map(_level, range(len(LEVELS))),
    Column("accuracy", "Top-1, %", "top-1 accuracy", lambda row: row.top_1, _accuracy),
    Column("other", "AP, IoU", "box AP or mean IoU", _other, _other_shown),
    Column("licence", "Licence", "licence", lambda row: row.licence, lambda row: _plain(row.licence) or "–"),
    Column("plugin", "Plugin", "plugin", lambda row: row.plugin, lambda row: _plain(row.plugin)),
)


def _filters(listed: Sequence[Row], families: Iterable[str]) -> Iterator[str]:
    """Yield the controls, which the script shows."""
    choices = {
        "family": families,
        "plugin": dict.fromkeys(row.plugin for row in listed),
        "licence": dict.fromkeys(row.licence for row in listed if row.licence),
    }
    yield '<form class="zoo-filters" aria-label="Filter the zoo" autocomplete="off" hidden>'
    yield '<label>Name, tag or licence<input type="search" name="q"></label>'
    for name, values in choices.items():
        options = "".join(f"<option>{_plain(value)}</option>" for value in sorted(values))
        yield f'<label>{name.capitalize()}<select name="{name}"><option value="">any</option>{options}</select></label>'
    for name, words in (("parameters", "Parameters ≤, millions"), ("macs", "MACs ≤, millions")):
        yield f'<label>{words}<input type="number" name="{name}" min="0" step="any" inputmode="decimal"></label>'
    yield '<label class="zoo-check"><input type="checkbox" name="weights" value="1"> With weights only</label>'
    yield '<button type="reset">Reset</button>'
    yield '<p class="zoo-count" role="status" aria-live="polite"></p>'
    yield '<p class="zoo-said" role="status"></p>'
    yield "</form>"


def _figure(scatter: str, families: Sequence[str], listed: Sequence[Row]) -> Iterator[str]:
    yield '<figure class="zoo-figure" tabindex="-1">'
    yield '<figcaption id="zoo-caption">Top-1 accuracy on ImageNet-1k, as published, against multiply-adds</figcaption>'
    yield f'<div class="zoo-plot">{scatter}<div class="zoo-panel" aria-hidden="true" hidden></div></div>'
    yield '<ul class="zoo-legend" aria-label="Families">'
    shown = {row.family for row in listed if row.top_1 is not None}
    for index, family in enumerate(families):
        if family in shown:
            icon = f'<svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">{mark(index)}</svg>'
            yield f"<li>{icon} {_plain(family)}</li>"
    yield "</ul>"
    yield '<p class="zoo-hint" hidden>Arrow keys go from point to point, Enter to its row, Escape back.</p>'
    yield "</figure>"


def _table(listed: Iterable[Row]) -> Iterator[str]:
    # Roles are stated, since a table that the style sheet lays out as cards is none to a screen reader.
    yield '<div class="zoo-box" role="region" aria-label="The zoo as a table" tabindex="0">'
    yield '<table class="zoo-table" role="table"><thead role="rowgroup"><tr role="row">'
    for column in COLUMNS:
        kind = ' class="zoo-number"' if column.numeric else ""
        type_ = "number" if column.numeric else "text"
        yield (
            f'<th role="columnheader" scope="col" data-key="{column.key}" data-type="{type_}" '
            f'data-words="{column.words}"{kind}>{column.title}</th>'
        )
    yield '<th role="columnheader" scope="col">Build</th></tr></thead><tbody role="rowgroup">'
    for row in listed:
        words = " ".join((row.name, row.tag, row.licence, row.head)).lower()
        yield (
            f'<tr role="row" id="{identity(row)}" data-text="{_plain(words)}" data-family="{_plain(row.family)}" '
            f'data-plugin="{_plain(row.plugin)}" data-licence="{_plain(row.licence)}" data-weights="{_plain(row.tag)}">'
        )
        yield from (_cell(column, row) for column in COLUMNS)
        line = _plain(row.line).replace(", ", ",<wbr> ").replace("_", "_<wbr>").replace("(", "(<wbr>", 1)
        yield f'<td role="cell" class="zoo-build" data-label="Build"><code>{line}</code></td></tr>'
    yield "</tbody></table></div>"


def _cell(column: Column, row: Row) -> str:
    value = column.value(row)
    kind = f"zoo-{column.key}" + (" zoo-number" if column.numeric else "")
    stated = "" if value is None else _plain(str(value))
    tag, role = ("th", 'role="rowheader" scope="row"') if column.key == "name" else ("td", 'role="cell"')
    return f'<{tag} {role} class="{kind}" data-label="{column.title}" data-value="{stated}">{column.shown(row)}</{tag}>'
