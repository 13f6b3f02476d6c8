"""Progress bars on standard error in terminals with rich installed, otherwise log lines at intervals."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from statistics import fmean
from threading import Timer

logger = logging.getLogger("featuretap")

SLOW, EVERY = 10.0, 60.0
"""Seconds after which the first progress line is logged, and seconds between later lines, unless an option sets
them."""

Begin = Callable[[str, "int | None"], Callable[..., None]]
"""Starts a progress step. Takes a label and the number of items (None if unknown) and returns a function to call after
each item."""


def log_steps(label: str, total: int | None) -> Callable[..., None]:
    """Log the start of a step at level INFO. The default `begin` of Python functions.

    Args:
        label: label of the step.
        total: number of items, or None.

    Returns:
        A function that does nothing.
    """
    logger.info("%s", label if total is None else f"{label}, {total} in all")
    return lambda count=1: None


@contextmanager
def progress_steps(
    *, shown: bool = True, auto_refresh: bool = True, log: Callable[[str], None] | None = None
) -> Iterator[Begin]:
    """Show a progress bar for consecutive steps.

    Yields a function that starts a step with a label and a total and returns a function that advances it. That function
    takes a count (1 by default), a text for the line below the bar such as the loss, and a text to show after the
    remaining time.

    Args:
        shown: False shows nothing, as on processes other than rank 0.
        auto_refresh: False redraws only when the bar advances, without a thread that disturbs measurements.
        log: called if no bar is shown, with a line for each step that takes longer than `SLOW` seconds and then every
            minute.

    Yields:
        Begin: starts a step.
    """
    if not (shown and _has_bars()):
        with _begin_lines(log if shown else None) as begin_lines:
            yield begin_lines
        return
    # Importing rich takes a tenth of the running time of `featuretap predict`.
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bar(Progress):
        """A bar with details on the line below. On a single line, rich truncates the times in narrow terminals."""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from (Text(each.fields["detail"], no_wrap=True) for each in self.tasks if each.fields["detail"])

    after = TextColumn("{task.fields[after]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), after)
    with Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=auto_refresh) as progress:
        task = progress.add_task("", detail="", after="")

        def begin(label: str, total: int | None) -> Callable[..., None]:
            progress.reset(task, description=label, total=total, detail="", after="")
            advance(0)
            return advance

        def advance(count: int = 1, detail: str = "", after: str = "") -> None:
            progress.update(task, advance=count, detail=detail, after=after)
            if not auto_refresh:
                progress.refresh()

        yield begin


@contextmanager
def _begin_lines(log: Callable[[str], None] | None) -> Iterator[Begin]:
    """Yield a function that starts a step, and logs lines if the step is slow."""
    timers: list[Timer] = []

    def begin(label: str, total: int | None) -> Callable[..., None]:
        if log is None:
            return lambda count=1, detail="", after="": None
        stop()
        timers.append(Timer(SLOW, log, [label if total is None else f"{label}, {total} in all"]))
        timers[0].daemon = True
        timers[0].start()
        return _advance_lines(label, total or 0, log, EVERY)

    def stop() -> None:
        while timers:
            timers.pop().cancel()

    try:
        yield begin
    finally:
        stop()


@contextmanager
def bar(
    label: str,
    total: int,
    *,
    shown: bool,
    log: Callable[[str], None] | None = None,
    every: float = 0.0,
    end: Callable[[float], float] | None = None,
) -> Iterator[Callable[..., None]]:
    """Show the progress of a single step.

    Args:
        label: label of the step.
        total: number of items.
        shown: as for `progress_steps`.
        log: called with progress lines if no bar is shown.
        every: seconds between these lines; 0 logs none.
        end: estimates the end of the run from the end of this step, both as `time.monotonic` values; None if the step
            does not belong to a run.

    Yields:
        Callable[..., None]: advances the step; see `progress_steps`.
    """
    start = time.monotonic()
    done = 0

    def time_of_run(left: float) -> str:
        now = time.monotonic()
        return "" if end is None else f"(run: {format_seconds(end(now + left) - now)})"

    with progress_steps(shown=shown) as begin:
        if log is not None and every and shown and not _has_bars():
            yield _advance_lines(label, total, log, every, time_of_run)
        else:
            advance = begin(label, total)

            def advance_bar(count: int = 1, detail: str = "") -> None:
                nonlocal done
                done += count
                advance(count, detail, time_of_run(_seconds_left(start, done, total)))

            yield advance_bar


def _seconds_left(start: float, done: int, total: int) -> float:
    return (time.monotonic() - start) * (total - done) / max(done, 1)


def _has_bars() -> bool:
    return sys.stderr.isatty() and find_spec("rich") is not None


def _advance_lines(
    label: str,
    total: int,
    log: Callable[[str], None],
    every: float,
    time_of_run: Callable[[float], str] = lambda left: "",
) -> Callable[..., None]:
    """Return a function that counts items and logs a progress line at intervals."""
    start = last = time.monotonic()
    done = 0

    def advance(count: int = 1, detail: str = "") -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= every and done:
            last = now
            left = _seconds_left(start, done, total)
            times = f"{format_seconds(left)} left {time_of_run(left)}".rstrip()
            log("  ".join(filter(None, (f"{label}: {done}/{total}", detail, times))))

    return advance


def format_seconds(seconds: float) -> str:
    """Format a remaining time as "0:12:30". Negative times become 0."""
    return str(timedelta(seconds=round(max(0.0, seconds))))


def end_of_run(start: float, epochs: int, history: Sequence[Mapping[str, float]], end_of_step: float) -> float:
    """Estimate the end of a run from the mean duration of its epochs.

    During the first epoch, the estimate is based on the end of the current step, so that it does not include the
    validation yet.

    Args:
        start: start of the current epoch, by `time.monotonic`.
        epochs: number of remaining epochs, including the current one.
        history: history rows of previous epochs.
        end_of_step: estimated end of the current step.

    Returns:
        The estimated end, by `time.monotonic`.
    """
    return start + epochs * (mean_seconds(history) if history else end_of_step - start)


def mean_seconds(history: Sequence[Mapping[str, float]]) -> float:
    """Return the mean duration of an epoch, including validation, from the rows of a history."""
    return fmean(row["seconds"] for row in history)


def format_epoch(history: Sequence[Mapping[str, float]], epochs: int) -> str:
    """Format the last row of a history as a log line.

    Args:
        history: history rows.
        epochs: total number of epochs.

    Returns:
        The line, with the estimated time left.
    """
    row = history[-1]
    measures = [
        f"{'train loss' if name == 'train_loss' else name} {value:.4f}"
        for name, value in row.items()
        if name not in ("epoch", "lr", "seconds", "images_per_second")
    ]
    width = len(str(epochs))
    remaining = epochs - len(history)
    left = f", {format_seconds(mean_seconds(history) * remaining)} left" if remaining else ""
    return (
        f"epoch {int(row['epoch']):>{width}}/{epochs}  {'  '.join(measures)}  "
        f"lr {row['lr']:.3g}  {row['seconds']:.1f} s{left}"
    )
