"""Writing a file whole or not at all. No torch."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from featuretap.registry.errors import WeightsError

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path`: whoever reads it sees the old file or the new one, also after a crash.

    A new file has the mode of the process's umask, a replaced one keeps its own; a symbolic link stays, and what it
    leads to is replaced.

    Raises:
        WeightsError: the folder or the disk does not take it; nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    # In the same folder, because only within a file system is renaming atomic.
    temporary = target.with_name(f".{target.name[:100]}.{uuid4().hex[:12]}.tmp")
    try:
        with _removed_on_failure(temporary):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            with os.fdopen(descriptor, "wb") as file:
                if target.exists():
                    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise WeightsError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


@contextlib.contextmanager
def _removed_on_failure(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    # The new name is on the disk only once its folder is. Some systems cannot open folders.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
