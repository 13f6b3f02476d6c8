"""Tables and numbers for people. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["print_table", "print_text", "short"]


def print_table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; columns are (title, "left" or "right")."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, side in columns:
        table.add_column(title, justify="right" if side == "right" else "left", no_wrap=not sys.stdout.isatty())
    for row in rows:
        # Names and paths are printed as they are, brackets and colons included.
        table.add_row(*map(Text, row))
    _console().print(table)


def print_text(text: str) -> None:
    """Print a line as it is."""
    _console().print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def short(count: int | None) -> str:
    """Return a count in thousands, millions or billions with three or four digits; a dash for None."""
    if count is None:
        return "–"
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.{1 if count >= 100 * size else 2}f} {unit}"
    return str(count)


def _console() -> Console:
    # Piped into a file or another program, a table is as wide as it is.
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=10_000)
