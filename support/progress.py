"""Progress bars on standard error, where it is a terminal and rich is installed; elsewhere lines at intervals."""

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
"""Seconds after which a line tells what a command does, and between later ones, where no option sets them."""

Begin = Callable[[str, "int | None"], Callable[..., None]]
"""Begins a step of a label and a total, None where it has no parts, and returns what is called after each part."""


def log_steps(label: str, total: int | None) -> Callable[..., None]:
    """Log at level INFO that a step begins: the `Begin` of functions that are called from Python."""
    logger.info("%s", label if total is None else f"{label}, {total} in all")
    return lambda count=1: None


@contextmanager
def progress_steps(
    *, shown: bool = True, auto_refresh: bool = True, log: Callable[[str], None] | None = None
) -> Iterator[Begin]:
    """Yield a function that begins a step of a label and a total, and returns one that advances it.

    That one takes a count, 1 by default, and texts that are shown below the bar, such as a loss, and after the time
    left.

    Args:
        shown: False shows nothing, for processes other than the first.
        auto_refresh: False draws only when the bar advances, without a thread that takes time from what is measured.
        log: called where there is no bar, with a line for each step that takes longer than `SLOW`, and one a minute.
    """
    if not (shown and _has_bars()):
        with _begin_lines(log if shown else None) as begin_lines:
            yield begin_lines
        return
    # Importing it takes a tenth of the time of `featuretap predict`.
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bar(Progress):
        """A bar above its details: on one line, rich would cut the times in a narrow terminal."""

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
    """Yield what begins a step and logs a line once the step is slow, and then at intervals."""
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
    """Show the progress of one step, and yield the function that advances it; see `progress_steps`.

    Args:
        label: of the step.
        total: of the counts.
        shown: as for `progress_steps`.
        log: called with lines of progress where there is no bar.
        every: seconds between these lines; 0 for none.
        end: returns when the run that the step is a part of is expected to end from when the step is, both by
            `time.monotonic`; None for a step that is no part of a run.
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
    """Return a function that counts, and logs a line whenever some seconds have passed since the last."""
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
    """Return a time left as "0:12:30"; one that is over is 0."""
    return str(timedelta(seconds=round(max(0.0, seconds))))


def end_of_run(start: float, epochs: int, history: Sequence[Mapping[str, float]], end_of_step: float) -> float:
    """Return when a run is expected to end: an epoch takes as long as those before it.

    The first one is taken to end with its step, so that in its training the evaluation is left out.

    Args:
        start: of the epoch, by `time.monotonic`.
        epochs: that are not over, with this one.
        history: rows of the epochs before it.
        end_of_step: when the step of the epoch is expected to end.
    """
    return start + epochs * (mean_seconds(history) if history else end_of_step - start)


def mean_seconds(history: Sequence[Mapping[str, float]]) -> float:
    """Return the mean time of an epoch, validation included, by the rows of a history."""
    return fmean(row["seconds"] for row in history)


def format_epoch(history: Sequence[Mapping[str, float]], epochs: int) -> str:
    """Return the line that reports the last epoch of a history, with the time left of all."""
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
