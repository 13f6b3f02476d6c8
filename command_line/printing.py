"""Tables, fields and JSON on standard output."""

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
    """Print text, with characters escaped that would control the terminal or that have no bytes in UTF-8.

    What cannot be written on standard error, as where it is closed or its disk is full, is dropped.
    """
    try:
        click.echo(printable(str(text)), err=err)
    except OSError:
        if not err:
            raise
        discard(sys.stderr)


def open_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed, so that no other file gets their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest number that is free, which is the stream's, as those before it are open.
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open for as long as the process runs


def discard(stream: TextIO) -> None:
    """Discard further output, so that flushing it at exit raises nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class LogFormatter(logging.Formatter):
    """Log lines as `echo` prints text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().format(record))


def print_table(titles: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a title that begins with ">" is of a column that is aligned right.

    It fits the width of a terminal. Pipes and files get one line per row, however long, for other programs; terminals
    too, if rich is not installed.
    """
    titles = list(titles)
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    if (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")) and find_spec("rich"):
        _print_styled(titles, rows)
        return
    # Importing rich and rendering with it takes a sixth of the time of `featuretap list`.
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
        # Names and paths are printed as they are, brackets and colons included.
        table.add_row(*map(Text, row))
    # Bold is not a colour, but NO_COLOR means no escape sequences at all.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    console = Console(highlight=False, color_system=colours, width=None if terminal else 10_000)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    # rich has decided whether there are escape sequences.
    click.echo("\n".join(lines if terminal else [line[1:].rstrip() for line in lines if line.strip()]), color=True)


def print_fields(fields: Mapping[str, str | None], width: int = 12) -> None:
    """Print a line for each field that has a text, with labels of a width."""
    for label, text in fields.items():
        if text:
            echo(f"  {label:<{width}} {text}")


def format_options(options: Mapping[str, Any] | None) -> str:
    """Return options as "width=0.5, norm=None", those of a head as "road.num_classes=2"."""
    flat: dict[str, Any] = {}
    for name, value in (options or {}).items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return ", ".join(f"{name}={value}" for name, value in flat.items())


def report_unreadable(bad: int, images: int, note: str = "") -> None:
    """Report on standard error how many of some images cannot be read."""
    echo(f"featuretap: {bad} of {images} images cannot be read and are left out{note}", err=True)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))
