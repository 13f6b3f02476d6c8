"""What becomes of a command that somebody interrupts, or whose reader goes away. No torch.

Files are written whole or not at all, so that there is nothing to mend, and only to say what is there.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import clear_frames
from typing import NoReturn

import click

__all__ = [
    "ReaderGoneError",
    "TerminatedError",
    "close_output",
    "exit_interrupted",
    "exit_unread",
    "terminable",
    "told",
    "unless_written",
]

INTERRUPTED, UNREAD, TERMINATED = 130, 141, 143
"""Exit statuses, as a shell gives them for SIGINT, SIGPIPE and SIGTERM."""


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end by SIGTERM: what goes for Ctrl-C goes for it, but for the exit status."""


class ReaderGoneError(Exception):
    """Nobody reads what is printed any more, as in `featuretap list | head -1`."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind the program, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        # Somebody calls this from a program that has ways of its own.
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: object) -> NoReturn:
    raise TerminatedError


@contextmanager
def told() -> Iterator[None]:
    """Turn interruptions into errors that click leaves alone."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise click.Abort from interrupt
    except BrokenPipeError as error:
        raise ReaderGoneError from error


@contextmanager
def unless_written(target: Path) -> Iterator[None]:
    """Say of an interrupted command that nothing was written, if the target is what it was."""
    before = _state(target)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise click.Abort("nothing was written" if _state(target) == before else "") from interrupt


def _state(target: Path) -> list[tuple[str, int, int]]:
    """Return what tells a file, or the files of a folder, from what may replace them."""
    found: list[tuple[str, int, int]] = []
    # What cannot be looked at is for the command to say.
    with suppress(OSError):
        for path in sorted(target.iterdir()) if target.is_dir() else [target]:
            with suppress(OSError):
                stat = path.stat()
                found.append((path.name, stat.st_ino, stat.st_mtime_ns))
    return found


def exit_interrupted(error: click.Abort | KeyboardInterrupt) -> NoReturn:
    """Say in a line what an interruption has left, and end the process."""
    _let_go(error.__cause__ or error)
    if sys.stderr.isatty():
        # The terminal has written ^C.
        click.echo(err=True)
    click.echo(f"featuretap: {'; '.join(filter(None, ('interrupted', *error.args)))}", err=True)
    sys.exit(TERMINATED if TerminatedError in map(type, (error, error.__cause__)) else INTERRUPTED)


def _let_go(interrupt: BaseException) -> None:
    """Take away what the interrupted code still holds, without what that complains of."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        # Ctrl-C reaches the processes of loaders as well, whose loss a loader otherwise reports as it goes.
        clear_frames(interrupt.__traceback__)
        gc.collect()
    finally:
        sys.unraisablehook = hook


def exit_unread() -> NoReturn:
    """End the process without a word, as other tools do."""
    close_output()
    sys.exit(UNREAD)


def close_output() -> None:
    """Print nothing more: Python would otherwise complain when it flushes what is left at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
