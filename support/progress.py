"""What a run says while it goes on: a line an epoch, and a bar where somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["bar", "epoch_in_words"]


@contextmanager
def bar(words: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while something goes on, and yield what moves it on by a number.

    Args:
        words: what goes on.
        total: the number at its end.
        shown: whether this process is the one to show it; nothing is shown where standard error is no terminal.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task(words, total=total)
        yield lambda count: progress.advance(task, count)


def epoch_in_words(row: Mapping[str, float], epochs: int) -> str:
    """Return the line of an epoch.

    Args:
        row: of the history: "epoch", "train_loss", measures, "lr" and "seconds".
        epochs: of the run.
    """
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
