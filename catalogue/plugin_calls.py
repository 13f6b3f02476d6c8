"""Calls of plugin code that isolate its output, failures and delays from the calling program."""

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
"""Seconds of loading after which a warning names the plugin."""

logger = logging.getLogger("featuretap")


def call_plugin(doing: str, call: Callable[[], Answer]) -> tuple[Answer | None, BaseException | None]:
    """Call a plugin's code and return its result or its exception.

    Args:
        doing: the current operation, for a note on an interruption: "loading plugin 'x'".
        call: the plugin's code. Its output to stdout goes to stderr.

    Returns:
        The result and None, or None and the exception, including KeyboardInterrupt and SystemExit raised by the plugin.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C, or the program was terminated, during the call.
    """
    answer, failure = None, None
    with OUTPUT, _record_interrupts() as interrupts:
        try:
            answer = call()
        except BaseException as error:
            failure = error
    if interrupts:
        # The plugin may have converted the interrupt into another exception, such as an ImportError.
        interrupts[0].add_note(f"while {doing}")
        raise interrupts[0]
    return answer, failure


@contextmanager
def _record_interrupts() -> Iterator[list[BaseException]]:
    """Yield a list that collects the exceptions raised by the handlers of SIGINT and SIGTERM."""
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
        # Keep a handler that the plugin has installed.
        if signal.getsignal(number) is handler:
            signal.signal(number, previous)

    # Only the main thread can set handlers. In another thread, an interrupt can only come from the plugin.
    with suppress(ValueError):
        signal.signal(number, handler)
        restored.callback(restore)


class _OutputToStandardError:
    """Redirect stdout to stderr while any thread calls a plugin, because programs parse featuretap's stdout."""

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
    """Redirect the output of C code and child processes, and restore both streams even if they were closed."""
    kept = {}
    _flush()
    # In a process without stdout, descriptor 1 may be any file.
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
            # A plugin may have closed the copies.
            with suppress(OSError):
                os.dup2(copy, descriptor)
                os.close(copy)


def _flush() -> None:
    # The program reports a failed write itself, on its next write.
    with suppress(OSError, ValueError, AttributeError):
        sys.__stdout__.flush()  # type: ignore[union-attr]


class SlowWatch:
    """Log a warning that names the plugin being loaded, once it has taken `SLOW` seconds."""

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
        """Start timing the plugin `label`."""
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
