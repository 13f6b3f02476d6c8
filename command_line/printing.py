"""Printing of text, tables, fields and JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TextIO

import click

from featuretap.support.text import printable


def echo(text: str = "", *, err: bool = False) -> None:
    """Print text, escaping control characters and characters that UTF-8 cannot encode.

    Text for standard error is dropped if it cannot be written: the stream is closed, or the disk is full.
    """
    try:
        click.echo(printable(str(text)), err=err)
    except OSError:
        if not err:
            raise
        discard(sys.stderr)


def open_closed_streams() -> None:
    """Open the null device for standard streams that are closed, so that no other file gets their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # open() takes the lowest free descriptor, which is the stream's: the ones below it are open.
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - stays open until the process ends


def discard(stream: TextIO) -> None:
    """Discard further output, so that flushing the stream at exit does not raise."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class LogFormatter(logging.Formatter):
    """Formatter that escapes log lines as `echo` escapes text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the log line of a record."""
        return printable(super().format(record))


def print_table(titles: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. A title that begins with ">" aligns its column to the right.

    In a terminal the table fits the width. Pipes and files get one line per row of any length, for other programs; so
    do terminals if rich is not installed.
    """
    titles = list(titles)
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    if (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")) and find_spec("rich"):
        _print_styled(titles, rows)
        return
    # Importing and running rich takes a sixth of the time of `featuretap list`, so pipes go without it.
    cells = [[title.removeprefix(">") for title in titles], *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    alignments = [">" if title.startswith(">") else "<" for title in titles]
    template = "   ".join(f"{{:{side}{width}}}" for side, width in zip(alignments, widths, strict=True))
    head, *lines = (template.format(*row).rstrip() for row in cells)
    click.echo("\n".join([head, "─" * (sum(widths) + 3 * len(widths) - 3), *lines]))


def _print_styled(titles: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        justify: Literal["right", "left"] = "right" if title.startswith(">") else "left"
        table.add_column(title.removeprefix(">"), justify=justify, no_wrap=not terminal)
    for row in rows:
        # Text, not str: rich would read brackets and colons in names and paths as markup.
        table.add_row(*map(Text, row))
    # rich keeps bold text under NO_COLOR; without a color system it writes no escape sequences at all.
    color_system: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    console = Console(highlight=False, color_system=color_system, width=None if terminal else 10_000)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    # rich has decided on escape sequences, so click must not strip them.
    click.echo("\n".join(lines if terminal else [line[1:].rstrip() for line in lines if line.strip()]), color=True)


def print_fields(fields: Mapping[str, str | None], width: int = 12) -> None:
    """Print a line for each non-empty field, with labels padded to `width`."""
    for label, text in fields.items():
        if text:
            echo(f"  {label:<{width}} {text}")


def format_options(options: Mapping[str, Any] | None) -> str:
    """Return options as text: "width=0.5, norm=None"; the options of a head as "road.num_classes=2"."""
    flat: dict[str, Any] = {}
    for name, value in (options or {}).items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return ", ".join(f"{name}={value}" for name, value in flat.items())


def report_unreadable(bad: int, images: int, note: str = "") -> None:
    """Report on standard error how many of the images were skipped because they cannot be read."""
    echo(f"featuretap: skipped {bad} of {images} images, which cannot be read{note}", err=True)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))
