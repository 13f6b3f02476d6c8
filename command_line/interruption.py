"""Interrupted and terminated commands, and closed output. Files are written atomically, so none is broken."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import clear_frames
from typing import NoReturn

import click

from featuretap.command_line.printing import discard, echo

CLOSED = 141
"""Exit status where nobody reads the output any more, as a shell gives it for SIGPIPE."""


@contextmanager
def convert_sigterm() -> Iterator[None]:
    """Raise a KeyboardInterrupt at SIGTERM, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        # The handler of a program that calls us stays.
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


@contextmanager
def convert_interrupts() -> Iterator[None]:
    """Handle interruptions before click, which would write a blank line, and exit with 1 where nobody reads."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise click.Abort from interrupt
    except BrokenPipeError:
        discard(sys.stdout)
        sys.exit(CLOSED)


@contextmanager
def report_unwritten(target: Path) -> Iterator[None]:
    """Let an interrupted command report that nothing was written, if the file or folder is unchanged."""
    before = _state(target)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise click.Abort("nothing was written" if _state(target) == before else "") from interrupt


def _state(target: Path) -> list[tuple[str, int, int]]:
    """Return the name, inode and time of a file, or of the files in a folder."""
    # What cannot be read is for the command to report.
    with suppress(OSError):
        paths = sorted(target.iterdir()) if target.is_dir() else [target]
        return [(path.name, stat.st_ino, stat.st_mtime_ns) for path in paths for stat in [path.stat()]]
    return []


def exit_interrupted(error: click.Abort | KeyboardInterrupt) -> NoReturn:
    """Report an interruption in a line, and exit as a shell does for its signal: with 130 or 143."""
    interrupt = error.__cause__ or error
    _clear_frames(interrupt)
    if sys.stderr.isatty():
        # The terminal has written ^C.
        echo(err=True)
    advice = error.args if isinstance(error, click.Abort) else ()
    # The plugin that was interrupted.
    interrupted = " ".join(("interrupted", *getattr(interrupt, "__notes__", ())))
    echo(f"featuretap: {'; '.join(filter(None, (interrupted, *advice)))}", err=True)
    terminated = isinstance(interrupt, KeyboardInterrupt) and interrupt.args == (signal.SIGTERM,)
    sys.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))


def _clear_frames(interrupt: BaseException) -> None:
    """Free the objects of the interrupted code without printing what their finalizers raise."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        # Ctrl-C also ends the workers of a loader, which it would report when it is freed.
        clear_frames(interrupt.__traceback__)
        gc.collect()
    finally:
        sys.unraisablehook = hook
