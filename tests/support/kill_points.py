"""Count the calls of `os.fsync` in this process, or kill the process at one of them.

Writing a file takes two calls: the temporary file is synced, then renamed, then its folder is synced. A process killed
at an odd call therefore leaves a temporary file, and one killed at an even call leaves the new file.
"""

import os
import signal
from pathlib import Path


def count_syncs(path: Path) -> None:
    """Append a letter to a file at each call of `os.fsync`."""
    path.unlink(missing_ok=True)
    sync = os.fsync

    def counted(descriptor: int) -> None:
        sync(descriptor)
        with path.open("a") as file:
            file.write("x")

    os.fsync = counted


def kill_at_sync(number: int) -> None:
    """Kill this process with SIGKILL at the n-th call of `os.fsync`, before that call syncs anything."""
    left = [number]
    sync = os.fsync

    def dying(descriptor: int) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = dying
