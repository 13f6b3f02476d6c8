"""Handling of Ctrl-C, SIGTERM and closed output. Files are written atomically, so an interruption corrupts none."""

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
"""Exit status when the reader of the output has closed it, as a shell reports SIGPIPE."""


@contextmanager
def convert_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        # Keep the handler of a program that calls `main`.
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
    """Handle Ctrl-C and closed output before click, which would print a blank line or exit with status 1."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise click.Abort from interrupt
    except BrokenPipeError:
        discard(sys.stdout)
        sys.exit(CLOSED)


@contextmanager
def report_unwritten(target: Path) -> Iterator[None]:
    """Make an interrupted command report that nothing was written, if `target` is unchanged."""
    before = _state(target)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise click.Abort("nothing was written" if _state(target) == before else "") from interrupt


def _state(target: Path) -> list[tuple[str, int, int]]:
    """Return name, inode and modification time of a file, or of each file in a folder."""
    # The command itself reports paths that cannot be read.
    with suppress(OSError):
        paths = sorted(target.iterdir()) if target.is_dir() else [target]
        return [(path.name, stat.st_ino, stat.st_mtime_ns) for path in paths for stat in [path.stat()]]
    return []


def exit_interrupted(error: click.Abort | KeyboardInterrupt) -> NoReturn:
    """Report an interruption in one line, and exit with status 130 (SIGINT) or 143 (SIGTERM), as a shell does."""
    interrupt = error.__cause__ or error
    _clear_frames(interrupt)
    if sys.stderr.isatty():
        # End the line on which the terminal printed ^C.
        echo(err=True)
    advice = error.args if isinstance(error, click.Abort) else ()
    # The note names the plugin that was interrupted.
    interrupted = " ".join(("interrupted", *getattr(interrupt, "__notes__", ())))
    echo(f"featuretap: {'; '.join(filter(None, (interrupted, *advice)))}", err=True)
    terminated = isinstance(interrupt, KeyboardInterrupt) and interrupt.args == (signal.SIGTERM,)
    sys.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))


def _clear_frames(interrupt: BaseException) -> None:
    """Free the objects of the interrupted code without printing errors of their finalizers."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        # Ctrl-C also ends the workers of a data loader, and its finalizer would report them.
        clear_frames(interrupt.__traceback__)
        gc.collect()
    finally:
        sys.unraisablehook = hook
