"""Signals and errors of a data loader's worker processes.

Ctrl-C in a terminal also reaches the workers. They ignore it and leave it to the parent process to end them. A
featuretap error is returned in place of a batch, since PyTorch would turn it into a message with a traceback.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from featuretap.support.errors import FeaturetapError


def ignore_sigint(worker: int) -> None:
    """Ignore Ctrl-C in a forked worker and end it on SIGTERM. Use as a data loader's `worker_init_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def block_sigint() -> Iterator[None]:
    """Start processes that never receive Ctrl-C. They inherit the mask of blocked signals."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # The resource tracker unblocks the signal when it starts, so it must be running already.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def collate_or_error(collate: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    """Return the batch of the items, or the first item that is an error."""
    error = next((item for item in items if isinstance(item, FeaturetapError)), None)
    return collate(items) if error is None else error


def raise_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a data loader, and raise errors returned in place of a batch.

    Args:
        batches: the data loader.

    Yields:
        Any: the batches.

    Raises:
        FeaturetapError: a worker returned this error.
    """
    for batch in batches:
        if isinstance(batch, FeaturetapError):
            raise batch
        yield batch
