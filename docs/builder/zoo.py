"""The zoo page: a chart and a table of every backbone in the catalogue with its weights.

The page works without JavaScript. `docs/assets/zoo.js` adds sorting, filters and links between chart and table. It
reads the `data-` attributes that this module writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from docs.builder.zoo_machines import Machine, read_machines
from docs.builder.zoo_rows import LEVELS, SIZE, Row, rows
from docs.builder.zoo_scatter import draw_scatter, identity, mark
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

All backbones that featuretap builds by name, with their published weights. Some of torchvision's classifiers are listed
for comparison. Each row is a backbone with one set of weights, and the last column is the code that builds it.

Parameters, MACs, memory and latency refer to the backbone, which computes the feature maps `C1` to `C5`. The small
numbers under parameters and MACs include the head.

Filter, sort and search, then copy the address of the page to share the view.

"""

NOTES = f"""

## What the columns mean

- **Parameters** are the parameters of the backbone, including batch norm. The small number is for the full model: with
  the 1000-class classifier, or with the head that the weights were trained with. Filters and sorting use the backbone.
- **MACs** are the multiply-adds of the backbone's convolutions and linear layers, including squeeze-excite. The small
  number includes the classifier. featuretap counts them in the same way for every row. The table shows them for one
  image of {SIZE}×{SIZE} pixels, the chart for the image size of the published accuracy. Detectors and segmenters use
  other image sizes, so the MACs of their heads are not shown.
- **Memory** is the peak memory of the activations for the feature maps `C1` to `C5`, in megabytes (10⁶ bytes), for
  one image of {SIZE}×{SIZE} pixels in float32. It is the largest sum of all tensors that are in memory at one time:
  the input and the output of the current layer, the input of an unfinished shortcut, and the feature maps computed
  so far. A convolution counts as one layer with its batch norm and activation. Weights and the scratch memory of a
  runtime are not included. `spec.activation_memory(height, width)` returns the value for any image size and any
  taps.
- **Latency** is the median time to compute `C1` to `C5` for one image of {SIZE}×{SIZE} pixels, measured by
  `featuretap bench`. The small numbers are the quartiles. Choose machine and runtime above the table. It was not
  measured for the weights of detectors and segmenters.
- **C1 to C5** are the channels of the feature maps.
- **Top-1** is the accuracy on ImageNet-1k in percent, and **AP, IoU** is box AP on COCO or mean IoU. These are the
  published values. They were not measured again.
- **License** is the license of the weights. Rows without published weights show "–". For weights from the Hugging Face
  hub it is the license that timm records. torchvision does not state a license for its weights, so the license of the
  package is shown. The weights `ssdlite300_person` have the license of the distribution that contains them. Most
  weights were trained on ImageNet, whose terms of access restrict it to non-commercial research and education. Check
  whether this matters for your use.
- **torchvision's rows** are classifiers with a pooled C5 and one linear layer. Their code builds the feature maps
  without the classifier. `featuretap list 'torchvision/*'` lists all backbones from torchvision. Their memory is not
  shown, because featuretap computes it from its own layer tables, which torchvision's models do not have. Their latency
  was not measured.

## Machines

"""

MORE_MACHINES = """\
### Add your machine

Run this in a checkout of the repository:

```bash
python -m benchmarks.latency "Raspberry Pi 5, 4 cores" --threads 4
```

It runs `featuretap bench` for every backbone, with ONNX Runtime and PyTorch at 224×224 pixels, and writes
`benchmarks/machines/raspberry-pi-5-4-cores.json`. The file contains the processor, the date, the versions of the
packages, and the quartiles for each backbone and runtime in milliseconds. To use other settings, save the output of
`featuretap bench … --json` and add `--results FILE`. With several results, each backbone's lowest median is used. Add
`--note` to describe the conditions, and send the file as a pull request.
"""


class Column(NamedTuple):
    """A column: key in the script, title, label for screen readers, value of a row, HTML of a cell, and tooltip."""

    key: str
    title: str
    label: str
    value: Callable[[Row], Value]
    html: Callable[[Row], str]
    about: str = ""

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers."""
        return self.key not in TEXTS


TEXTS = {"name", "weights", "license", "plugin"}


def page(found: Sequence[Row] | None = None, machines: Mapping[str, Machine] | None = None) -> str:
    """Return the Markdown of the zoo page.

    Args:
        found: the rows; the backbones of the built-in plugins by default.
        machines: file name → measured latencies; those of `benchmarks/machines/` by default.

    Returns:
        The page.
    """
    machines = read_machines() if machines is None else machines
    listed = rows(Registry(discover=False), machines=machines) if found is None else found
    families = list(dict.fromkeys(row.family for row in listed))
    sources = _sources(listed, machines)
    scatter = draw_scatter(listed, families)
    html = [
        '<div class="zoo">',
        *_filters(listed, families, sources),
        *(_figure(scatter, families, listed) if scatter else ()),
        *_table(listed, sources),
        "</div>",
    ]
    measured = dict.fromkeys(key.rpartition("/")[0] for key in sources)
    descriptions = [_describe(machines[key]) for key in measured]
    return "".join((PROSE, "\n".join(html), NOTES, *descriptions, MORE_MACHINES))


def _sources(listed: Iterable[Row], machines: Mapping[str, Machine]) -> dict[str, str]:
    """Return "machine/runtime" → label for everything that has measured a row, the default first."""
    measured = {key for row in listed for key in row.latency}
    return {
        f"{key}/{runtime}": machine.label(runtime)
        for key, machine in machines.items()
        for runtime in machine.runtimes
        if f"{key}/{runtime}" in measured
    }


def _describe(machine: Machine) -> str:
    """Return how a machine's latencies were measured, in Markdown."""
    names = ("featuretap", "onnxruntime", "openvino", "torch")
    ran = {"eager": "torch"}
    packages = {"featuretap", *(ran.get(runtime, runtime) for runtime in machine.runtimes)}
    versions = ", ".join(f"{name} {machine.versions[name]}" for name in names if name in packages)
    units = f" ({', '.join(machine.vector_units)})" if machine.vector_units else ""
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    runs = f", lowest median of {machine.runs} runs" if machine.runs > 1 else ""
    cores = f"{machine.cores} core{'s' * (machine.cores > 1)}"
    about = f"{machine.processor}{units}, {cores}, {threads}; {machine.system}; {versions}."
    when = f"Measured on {machine.date} in {machine.rounds} rounds{runs}. {machine.note}"
    return f"### {_plain(machine.machine)}\n\n{_plain(about)} {_plain(when)}\n\n"


def _plain(text: str) -> str:
    """Return text as HTML on one line, because a blank line would end the block in Markdown."""
    return escape(" ".join(text.split()))


def _breakable(name: str) -> str:
    """Return a name as HTML with places for line breaks."""
    return _plain(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _weights(row: Row) -> str:
    if not row.tag:
        return "–"
    size = f"{row.megabytes:.1f} MB" if row.megabytes else ""
    kind = "" if row.head == "classification" else f"head {row.head}"
    crop = f"{row.crop}×{row.crop}" if row.crop else ""
    about = ", ".join(filter(None, (kind, size, crop)))
    return f"{_breakable(row.tag)}<small>{_plain(about)}</small>"


def _accuracy(row: Row) -> str:
    return "–" if row.top_1 is None else f"{row.top_1:.2f}"


def _other(row: Row) -> float | None:
    return row.accuracy if row.measure != "top-1" else None


def _other_html(row: Row) -> str:
    return "–" if _other(row) is None else f"{row.accuracy:.1f}<small>{_plain(row.measure)}</small>"


def _level(index: int) -> Column:
    def value(row: Row) -> int | None:
        return row.channels[index]

    level = LEVELS[index]
    return Column(level.lower(), level, f"channels of {level}", value, lambda row: str(value(row) or "–"))


def _count(count: int, with_head: int | None) -> str:
    small = "" if with_head is None else f"<small>with\N{NO-BREAK SPACE}head {_unbroken(with_head)}</small>"
    return f"{format_count(count)}{small}"


def _unbroken(count: int) -> str:
    return format_count(count).replace(" ", "\N{NO-BREAK SPACE}")


def _megabytes(row: Row) -> float | None:
    return None if row.memory is None else row.memory / 1e6


def _memory(row: Row) -> str:
    megabytes = _megabytes(row)
    return "–" if megabytes is None else f"{megabytes:.2f}"


def _latency(row: Row) -> float | None:
    times = next(iter(row.latency.values()), None)
    return times[1] if times else None


def _latency_html(row: Row) -> str:
    times = next(iter(row.latency.values()), None)
    if times is None:
        return "–"
    low, median, high = (f"{value:.2f}" for value in times)
    return f"{median}<small>{low}–{high}</small>"


COLUMNS = (
    Column("name", "Backbone", "backbone", lambda row: row.name, lambda row: _breakable(row.name)),
    Column("weights", "Weights", "weights", lambda row: row.tag, _weights),
    Column(
        "parameters",
        "Parameters",
        "parameters",
        lambda row: row.parameters,
        lambda row: _count(row.parameters, row.model_parameters),
        "Parameters of the backbone; small: with the head",
    ),
    Column(
        "macs",
        "MACs",
        "multiply-adds",
        lambda row: row.macs,
        lambda row: _count(row.macs, row.model_macs),
        f"Multiply-adds of the backbone at {SIZE}×{SIZE}; small: with the classifier",
    ),
    Column(
        "memory",
        "Memory, MB",
        "peak activation memory",
        _megabytes,
        _memory,
        f"Peak activation memory of the backbone, C1 to C5, at {SIZE}×{SIZE}",
    ),
    Column(
        "latency",
        "Latency, ms",
        "latency",
        _latency,
        _latency_html,
        f"Median latency of the backbone, C1 to C5, at {SIZE}×{SIZE}; small: quartiles",
    ),
    *map(_level, range(len(LEVELS))),
    Column("accuracy", "Top-1, %", "top-1 accuracy", lambda row: row.top_1, _accuracy),
    Column("other", "AP, IoU", "box AP or mean IoU", _other, _other_html),
    Column("license", "License", "license", lambda row: row.license, lambda row: _plain(row.license) or "–"),
    Column("plugin", "Plugin", "plugin", lambda row: row.plugin, lambda row: _plain(row.plugin)),
)

LIMITS = {
    "parameters": "Parameters ≤, millions",
    "macs": "MACs ≤, millions",
    "memory": "Memory ≤, MB",
    "latency": "Latency ≤, ms",
}
"""Column with a limit → label of its field."""


def _filters(listed: Sequence[Row], families: Iterable[str], sources: Mapping[str, str]) -> Iterator[str]:
    """Yield the controls, which the script shows."""
    choices = {
        "family": families,
        "plugin": dict.fromkeys(row.plugin for row in listed),
        "license": dict.fromkeys(row.license for row in listed if row.license),
    }
    yield '<form class="zoo-filters" aria-label="Filter the zoo" autocomplete="off" hidden>'
    yield '<label>Name, tag or license<input type="search" name="q"></label>'
    for name, values in choices.items():
        options = "".join(f"<option>{_plain(value)}</option>" for value in sorted(values))
        yield f'<label>{name.capitalize()}<select name="{name}"><option value="">any</option>{options}</select></label>'
    for name, label in LIMITS.items():
        if name != "latency" or sources:
            yield f'<label>{label}<input type="number" name="{name}" min="0" step="any" inputmode="decimal"></label>'
    if sources:
        default, *others = sources
        options = f'<option value="">{_plain(sources[default])}</option>'
        options += "".join(f'<option value="{_plain(key)}">{_plain(sources[key])}</option>' for key in others)
        select = f'<select name="on" data-default="{_plain(default)}">{options}</select>'
        yield f'<label class="zoo-source">Latency measured on{select}</label>'
    yield '<label class="zoo-check"><input type="checkbox" name="weights" value="1"> With weights only</label>'
    yield '<button type="reset">Reset</button>'
    yield '<p class="zoo-count" role="status" aria-live="polite"></p>'
    yield '<p class="zoo-said" role="status"></p>'
    yield "</form>"


def _figure(scatter: str, families: Sequence[str], listed: Sequence[Row]) -> Iterator[str]:
    yield '<figure class="zoo-figure" tabindex="-1">'
    caption = "Published top-1 accuracy on ImageNet-1k and multiply-adds of the backbone"
    yield f'<figcaption id="zoo-caption">{caption}</figcaption>'
    yield f'<div class="zoo-plot">{scatter}<div class="zoo-panel" aria-hidden="true" hidden></div></div>'
    yield '<ul class="zoo-legend" aria-label="Families">'
    shown = {row.family for row in listed if row.top_1 is not None}
    for index, family in enumerate(families):
        if family in shown:
            icon = f'<svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">{mark(index)}</svg>'
            yield f"<li>{icon} {_plain(family)}</li>"
    yield "</ul>"
    yield '<p class="zoo-hint" hidden>Arrow keys move between points, Enter opens the row, Escape leaves the chart.</p>'
    yield "</figure>"


def _table(listed: Iterable[Row], sources: Mapping[str, str]) -> Iterator[str]:
    # With explicit roles it stays a table for screen readers when the style sheet shows it as cards.
    yield '<div class="zoo-box" role="region" aria-label="Table of backbones" tabindex="0">'
    yield '<table class="zoo-table" role="table"><thead role="rowgroup"><tr role="row">'
    for column in COLUMNS:
        kind = ' class="zoo-number"' if column.numeric else ""
        type_ = "number" if column.numeric else "text"
        about = f' title="{column.about}"' if column.about else ""
        yield (
            f'<th role="columnheader" scope="col" data-key="{column.key}" data-type="{type_}" '
            f'data-label="{column.label}"{kind}{about}>{column.title}</th>'
        )
    yield '<th role="columnheader" scope="col">Build</th></tr></thead><tbody role="rowgroup">'
    for row in listed:
        text = " ".join((row.name, row.tag, row.license, row.head)).lower()
        yield (
            f'<tr role="row" id="{identity(row)}" data-text="{_plain(text)}" data-family="{_plain(row.family)}" '
            f'data-plugin="{_plain(row.plugin)}" data-license="{_plain(row.license)}" data-weights="{_plain(row.tag)}">'
        )
        yield from (_cell(column, row, sources) for column in COLUMNS)
        line = _plain(row.line).replace(", ", ",<wbr> ").replace("_", "_<wbr>").replace("(", "(<wbr>", 1)
        yield f'<td role="cell" class="zoo-build" data-label="Build"><code>{line}</code></td></tr>'
    yield "</tbody></table></div>"


def _cell(column: Column, row: Row, sources: Mapping[str, str]) -> str:
    value = column.value(row)
    kind = f"zoo-{column.key}" + (" zoo-number" if column.numeric else "")
    data = f'data-value="{"" if value is None else _plain(str(value))}"'
    if column.key == "latency" and sources:
        # The script shows the times of the chosen machine.
        data += f' data-times="{escape(json.dumps(row.latency))}"'
    tag, role = ("th", 'role="rowheader" scope="row"') if column.key == "name" else ("td", 'role="cell"')
    return f'<{tag} {role} class="{kind}" data-label="{column.title}" {data}>{column.html(row)}</{tag}>'
