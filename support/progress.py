"""Progress bars on standard error, where it is a terminal and rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def progress_steps(
    *, shown: bool = True, auto_refresh: bool = True
) -> Iterator[Callable[[str, int | None], Callable[..., None]]]:
    """Yield a function that begins a step of a label and a total, and returns one that advances it by a count or 1.

    Args:
        shown: False shows nothing, for processes other than the first.
        auto_refresh: False draws only when the bar advances, without a thread that takes time from what is measured.
    """
    if not (shown and sys.stderr.isatty() and find_spec("rich")):
        yield lambda label, total: lambda count=1: None
        return
    # Importing it takes a tenth of the time of `featuretap predict`.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=auto_refresh) as progress:
        task = progress.add_task("")

        def begin(label: str, total: int | None) -> Callable[..., None]:
            progress.reset(task, description=label, total=total)
            advance(0)
            return advance

        def advance(count: int = 1) -> None:
            progress.advance(task, count)
            if not auto_refresh:
                progress.refresh()

        yield begin


@contextmanager
def bar(label: str, total: int, *, shown: bool) -> Iterator[Callable[..., None]]:
    """Show a progress bar of one step, and yield the function that advances it by a count or 1."""
    with progress_steps(shown=shown) as begin:
        yield begin(label, total)


def format_epoch(row: Mapping[str, float], epochs: int) -> str:
    """Return the line that reports an epoch, a row of the history."""
    measures = [
        f"{name} {value:.4f}"
        for name, value in row.items()
        if name not in ("epoch", "lr", "seconds", "images_per_second")
    ]
    width = len(str(epochs))
    return (
        f"epoch {int(row['epoch']):>{width}}/{epochs}  {'  '.join(measures).replace('_', ' ')}  "
        f"lr {row['lr']:.3g}  {row['seconds']:.1f} s"
    )
