"""A disk that is full, as this process sees it."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit the size of files that this process writes, in bytes; the hard limit stays, so that any user may undo it.

    Only inside a test: what pytest's plugins write between a fixture and its test would be cut off too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
