"""A simulated full disk."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit the size of files that this process writes, in bytes. Only the soft limit changes, so any user can undo it.

    Use it only inside a test: between a fixture and its test, the limit would also cut off files of pytest's plugins.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
