"""Calling a plugin's code: its output, its failures and its slowness are told from those of the program around it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from threading import Event, Lock, Thread
from time import perf_counter
from types import FrameType
from typing import Any, TypeVar

Answer = TypeVar("Answer")

SLOW = 5.0
"""Seconds after which a plugin that is still being loaded is named."""

logger = logging.getLogger("featuretap")


def call_plugin(doing: str, call: Callable[[], Answer]) -> tuple[Answer | None, BaseException | None]:
    """Return what a plugin's code returns, or None and what it raises, KeyboardInterrupt and SystemExit included.

    Args:
        doing: what is being done, for the note on an interruption: "loading plugin 'x'".
        call: the plugin's code. What it prints goes to standard error.

    Raises:
        KeyboardInterrupt: Ctrl-C was typed, or the program was terminated, while the code ran.
    """
    answer, failure = None, None
    with OUTPUT, _record_interrupts() as interrupts:
        try:
            answer = call()
        except BaseException as error:
            failure = error
    if interrupts:
        # Whatever the plugin made of it, such as an ImportError.
        interrupts[0].add_note(f"while {doing}")
        raise interrupts[0]
    return answer, failure


@contextmanager
def _record_interrupts() -> Iterator[list[BaseException]]:
    """Yield a list of what the handlers of SIGINT and SIGTERM raise; an empty one if nothing was typed."""
    interrupts: list[BaseException] = []
    with ExitStack() as restored:
        for number in (signal.SIGINT, signal.SIGTERM):
            _record(number, interrupts, restored)
        yield interrupts


def _record(number: int, interrupts: list[BaseException], restored: ExitStack) -> None:
    previous = signal.getsignal(number)
    if not callable(previous):
        return

    def handler(number: int, frame: FrameType | None) -> Any:
        try:
            return previous(number, frame)
        except BaseException as interrupt:
            interrupts.append(interrupt)
            raise

    def restore() -> None:
        # A handler that the plugin has set stays.
        if signal.getsignal(number) is handler:
            signal.signal(number, previous)

    # Only the main thread handles signals; in another thread, an interrupt is the plugin's own.
    with suppress(ValueError):
        signal.signal(number, handler)
        restored.callback(restore)


class _OutputToStandardError:
    """Standard output goes to standard error while any thread calls a plugin: programs read what featuretap prints."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls = 0
        self._restored = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                self._restored.enter_context(_redirect_descriptor())
                self._restored.enter_context(redirect_stdout(sys.stderr))

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                self._restored.close()


OUTPUT = _OutputToStandardError()


@contextmanager
def _redirect_descriptor() -> Iterator[None]:
    """Redirect what C code and child processes print. Restore both streams, even if they were closed."""
    kept = {}
    _flush()
    # Without standard output, descriptor 1 may be any file.
    for descriptor in (1, 2) if sys.__stdout__ is not None else ():
        with suppress(OSError):
            kept[descriptor] = os.dup(descriptor)
    if len(kept) == 2:
        os.dup2(2, 1)
    try:
        yield
    finally:
        _flush()
        for descriptor, copy in kept.items():
            # A plugin may have closed the copies, too.
            with suppress(OSError):
                os.dup2(copy, descriptor)
                os.close(copy)


def _flush() -> None:
    # What cannot be written is reported by the program, when it writes.
    with suppress(OSError, ValueError, AttributeError):
        sys.__stdout__.flush()  # type: ignore[union-attr]


class SlowWatch:
    """Logs a warning that names the plugin which is being loaded, once it has taken `SLOW` seconds."""

    def __init__(self) -> None:
        self._ended = Event()
        self._current = ("", perf_counter())
        self._thread = Thread(target=self._run, name="featuretap-slow-plugins", daemon=True)

    def __enter__(self) -> SlowWatch:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()

    def start(self, label: str) -> None:
        """Begin to time the plugin with this `label`."""
        self._current = (label, perf_counter())

    def _run(self) -> None:
        named = ("", 0.0)
        wait = SLOW
        while not self._ended.wait(wait):
            current = self._current
            wait = current[1] + SLOW - perf_counter()
            if wait <= 0:
                wait = SLOW
                if current != named:
                    named = current
                    logger.warning("%s has been loading for %g seconds", current[0], SLOW)
