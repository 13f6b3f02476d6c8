"""Files that are opened once: what is checked is what is read, whatever is put at their path meanwhile."""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from featuretap.support.errors import WeightsError
from featuretap.support.regular_files import open_regular

CHUNK = 2**17
"""Bytes that are hashed at once; larger ones are allocated anew each time."""


@contextmanager
def explain_os_error(path: Path) -> Iterator[None]:
    """Name the file in an error of the operating system.

    Raises:
        WeightsError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise WeightsError(f"cannot read the weights {str(path)!r}: {error.strerror or error}") from error


class OpenFile:
    """A file of weights that is open for reading, and closed with this object.

    A path can name another file at any time. Everything here reads the file that the path named first.

    Args:
        path: of the file.

    Attributes:
        path: of the file.
        size: in bytes.

    Raises:
        WeightsError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explain_os_error(path):
            with open_regular(path) as file:
                self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)
            self._state = self._current_state()
        self.size = self._state[0]
        self._parts: list[OpenFile] = []

    def open_beside(self, path: Path) -> OpenFile:
        """Return another file of the same checkpoint; `check_unchanged` checks it, too."""
        part = OpenFile(path)
        self._parts.append(part)
        return part

    def reader(self) -> BinaryIO:
        """Return the content from its beginning. All readers share one position, so only one can be in use."""
        file = open(self._descriptor, "rb", closefd=False)  # noqa: SIM115 - the caller closes it.
        file.seek(0)
        return file

    def mapped(self, access: int) -> mmap.mmap | bytes:
        """Return the content, mapped into memory with an `access` of `mmap`; that of an empty file is no map.

        Reading a part that the file has lost since ends the process with SIGBUS.
        """
        with explain_os_error(self.path):
            return mmap.mmap(self._descriptor, 0, access=access) if self.size else b""

    def sha256(self) -> str:
        """Return the SHA-256 in hexadecimal digits. Other threads may read the file meanwhile."""
        digest, position = hashlib.sha256(), 0
        with explain_os_error(self.path):
            while chunk := os.pread(self._descriptor, CHUNK, position):
                digest.update(chunk)
                position += len(chunk)
        return digest.hexdigest()

    def hash_in_thread(self) -> Callable[[], str]:
        """Begin to compute the SHA-256 in a thread, and return a function that waits for it."""
        pool = ThreadPoolExecutor(1, "featuretap-digest")
        future = pool.submit(self.sha256)
        pool.shutdown(wait=False)
        return future.result

    def check_unchanged(self) -> None:
        """Check that nothing was written into the file, or into its parts, since it was opened.

        Raises:
            WeightsError: something was; what was read may be a mixture.
        """
        for file in (self, *self._parts):
            if file._current_state() != file._state:
                raise WeightsError(
                    f"{str(file.path)!r} was changed while it was read; load it again when nothing writes to it"
                )

    def _current_state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns
