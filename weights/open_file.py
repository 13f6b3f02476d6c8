"""Files that are opened once, so that the checked content is the content that is read, even if the path changes."""

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
"""Bytes per step of hashing. Larger chunks would be allocated again in each step."""


@contextmanager
def explain_os_error(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into a `WeightsError` that names the file.

    Args:
        path: path of the file.

    Yields:
        None.

    Raises:
        WeightsError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise WeightsError(f"cannot read the weights {str(path)!r}: {error.strerror or error}") from error


class OpenFile:
    """A weights file that is open for reading. It is closed when this object is deleted.

    A path can refer to another file at any time. All methods read the file that was opened first.

    Args:
        path: path of the file.

    Attributes:
        size: size of the file in bytes.

    Raises:
        WeightsError: the file cannot be opened.
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
        """Open another file of the same checkpoint at `path`. `check_unchanged` also checks this file."""
        part = OpenFile(path)
        self._parts.append(part)
        return part

    def reader(self) -> BinaryIO:
        """Return a reader at the start of the file. All readers share one position, so use one at a time."""
        file = open(self._descriptor, "rb", closefd=False)  # noqa: SIM115 - the caller closes it.
        file.seek(0)
        return file

    def mapped(self, access: int) -> mmap.mmap | bytes:
        """Return the content mapped into memory with an `access` of `mmap`, or empty bytes for an empty file.

        If the file is truncated later, reading a missing part ends the process with SIGBUS.
        """
        with explain_os_error(self.path):
            return mmap.mmap(self._descriptor, 0, access=access) if self.size else b""

    def sha256(self) -> str:
        """Return the SHA-256 in hexadecimal digits. Other threads can read the file at the same time."""
        digest, position = hashlib.sha256(), 0
        with explain_os_error(self.path):
            while chunk := os.pread(self._descriptor, CHUNK, position):
                digest.update(chunk)
                position += len(chunk)
        return digest.hexdigest()

    def hash_in_thread(self) -> Callable[[], str]:
        """Start computing the SHA-256 in a thread, and return a function that waits for the result."""
        pool = ThreadPoolExecutor(1, "featuretap-digest")
        future = pool.submit(self.sha256)
        pool.shutdown(wait=False)
        return future.result

    def check_unchanged(self) -> None:
        """Check that the file and its parts have not been written to since they were opened.

        Raises:
            WeightsError: a file was changed, so the content that was read may be inconsistent.
        """
        for file in (self, *self._parts):
            if file._current_state() != file._state:
                raise WeightsError(
                    f"{str(file.path)!r} was changed while it was read; load it again after the writing has finished"
                )

    def _current_state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns
