"""Progress bars on standard error, where it is a terminal and rich is installed; elsewhere lines at intervals."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec


@contextmanager
def progress_steps(
    *, shown: bool = True, auto_refresh: bool = True
) -> Iterator[Callable[[str, int | None], Callable[..., None]]]:
    """Yield a function that begins a step of a label and a total, and returns one that advances it.

    That one takes a count, 1 by default, and a text that is shown beside it, such as a loss.

    Args:
        shown: False shows nothing, for processes other than the first.
        auto_refresh: False draws only when the bar advances, without a thread that takes time from what is measured.
    """
    if not (shown and _has_bars()):
        yield lambda label, total: lambda count=1, detail="": None
        return
    # Importing it takes a tenth of the time of `featuretap predict`.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    detail = TextColumn("{task.fields[detail]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), detail, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=auto_refresh) as progress:
        task = progress.add_task("", detail="")

        def begin(label: str, total: int | None) -> Callable[..., None]:
            progress.reset(task, description=label, total=total, detail="")
            advance(0)
            return advance

        def advance(count: int = 1, detail: str = "") -> None:
            progress.update(task, advance=count, detail=detail)
            if not auto_refresh:
                progress.refresh()

        yield begin


@contextmanager
def bar(
    label: str, total: int, *, shown: bool, log: Callable[[str], None] | None = None, every: float = 0.0
) -> Iterator[Callable[..., None]]:
    """Show the progress of one step, and yield the function that advances it; see `progress_steps`.

    Args:
        label: of the step.
        total: of the counts.
        shown: as for `progress_steps`.
        log: called with lines of progress where there is no bar.
        every: seconds between these lines; 0 for none.
    """
    with progress_steps(shown=shown) as begin:
        if log is not None and every and shown and not _has_bars():
            yield _advance_lines(label, total, log, every)
        else:
            yield begin(label, total)


def _has_bars() -> bool:
    return sys.stderr.isatty() and find_spec("rich") is not None


def _advance_lines(label: str, total: int, log: Callable[[str], None], every: float) -> Callable[..., None]:
    """Return a function that counts, and logs a line whenever some seconds have passed since the last."""
    start = last = time.monotonic()
    done = 0

    def advance(count: int = 1, detail: str = "") -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= every and done:
            last = now
            left = timedelta(seconds=round((now - start) * max(0, total - done) / done))
            log("  ".join(filter(None, (f"{label}: {done}/{total}", detail, f"{left} left"))))

    return advance


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
