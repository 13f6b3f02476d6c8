"""Write files atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

from featuretap.support.errors import FeaturetapError, WeightsError


def replace_files(contents: Mapping[Path, bytes], error_type: type[FeaturetapError] = WeightsError) -> None:
    """Write files atomically: even after a crash, readers see either the old or the new content.

    All contents are written to temporary files next to their targets before the first one is renamed. New files follow
    the umask; existing files keep their mode. Symbolic links are kept and their targets replaced.

    Args:
        contents: path → content.
        error_type: type of the error to raise.

    Raises:
        FeaturetapError: an `error_type`; the files cannot be written. No file is changed, and no temporary file
            remains.
    """
    written: dict[Path, Path] = {}
    path = Path()
    try:
        with contextlib.ExitStack() as cleanup:
            for path, content in contents.items():
                target = Path(os.path.realpath(path))
                if target.exists() and not target.is_file():
                    raise error_type(f"cannot write {str(path)!r}: it exists and is not a file")
                # In the same folder, since renaming is only atomic within a file system.
                temporary = target.with_name(f".featuretap-{uuid4().hex[:12]}.tmp")
                written[temporary] = target
                cleanup.callback(_remove, temporary)
                with temporary.open("xb") as file:
                    if target.exists():
                        shutil.copymode(target, temporary)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            with _defer_signals():
                for temporary, target in written.items():
                    temporary.replace(target)
        for folder in {target.parent for target in written.values()}:
            _sync(folder)
    except OSError as error:
        raise error_type(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink()


@contextlib.contextmanager
def _defer_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until all files are renamed."""
    if threading.current_thread() is not threading.main_thread():
        # Python handles signals in the main thread only.
        yield
        return
    received: list[int] = []
    # A handler that was not set from Python is None and cannot be restored.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        for late in received:
            signal.raise_signal(late)


def _sync(folder: Path) -> None:
    # A rename is durable only after its folder is synced. Some systems cannot open folders.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
