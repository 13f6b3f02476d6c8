"""Tables and lines of text on standard output. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["print_table", "print_text"]


def print_table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; columns are (title, "left" or "right").

    A terminal's width is kept to. Anything else gets a line a row, however long, for other programs to read.
    """
    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, side in columns:
        table.add_column(title, justify="right" if side == "right" else "left", no_wrap=not terminal)
    for row in rows:
        # Names and paths are printed as they are, brackets and colons included.
        table.add_row(*map(Text, row))
    lines = _rendered(table).splitlines()
    _print(lines if terminal else [line[1:].rstrip() for line in lines if line.strip()])


def print_text(text: str) -> None:
    """Print a line as it is."""
    _print(_rendered(Text(text)).splitlines())


def _rendered(shown: Table | Text) -> str:
    # Bold is no colour, but whoever wants none wants no escape sequence either.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    width = None if sys.stdout.isatty() else 10_000
    console = Console(highlight=False, color_system=colours, width=width)
    with console.capture() as captured:
        console.print(shown, soft_wrap=isinstance(shown, Text))
    return captured.get()


def _print(lines: Iterable[str]) -> None:
    # What colours there are have been asked for.
    click.echo("\n".join(lines), color=True)
