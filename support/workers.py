"""Signals of the processes that read images for a loader.

Ctrl-C in a terminal reaches them too. They leave it to their parent, which ends them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


def ignore_sigint(worker: int) -> None:
    """Let a forked worker of a loader ignore Ctrl-C, and end at SIGTERM: a loader's `worker_init_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def block_sigint() -> Iterator[None]:
    """Start processes that never see Ctrl-C: they inherit the mask of blocked signals."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # The tracker would unblock the signal when it starts by itself.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
