"""Processes that read images for a loader, and signals. No torch.

Ctrl-C in a terminal reaches them too. They leave it to their parent, which ends them; what they say of it is noise.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

__all__ = ["deaf", "starting_deaf"]


def deaf(worker: int) -> None:
    """Make a forked process of a loader deaf to Ctrl-C, and let SIGTERM end it: a loader's `worker_init_fn`.

    Args:
        worker: its number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def starting_deaf() -> Iterator[None]:
    """Start processes that are deaf to Ctrl-C from their first moment on, by the mask of signals that they inherit."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # It would unblock the signal when it starts by itself.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
