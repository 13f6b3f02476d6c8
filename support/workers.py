"""Signals and errors of the processes that read images for a loader.

Ctrl-C in a terminal reaches them too. They leave it to their parent, which ends them. An error of featuretap's is
returned in place of a batch, since PyTorch would put the text of a traceback into its message.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from featuretap.support.errors import FeaturetapError


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


def collate_or_error(collate: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    """Return the batch of some items, or the first of them that is an error."""
    error = next((item for item in items if isinstance(item, FeaturetapError)), None)
    return collate(items) if error is None else error


def raise_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader.

    Raises:
        FeaturetapError: the loader returned one in place of a batch.
    """
    for batch in batches:
        if isinstance(batch, FeaturetapError):
            raise batch
        yield batch
