"""Reading files that a user names, which may be pipes or devices: reading those could wait or go on forever."""

from __future__ import annotations

import errno
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

LONGEST_SETTINGS = 1_000_000
"""Bytes of a TOML file of catalogue entries or settings, whose parser takes a hundred times the memory."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be opened, or is a pipe, socket or device; `strerror` says so.
        ValueError: no file can have this name.
    """
    mode = path.stat().st_mode
    if not (S_ISREG(mode) or S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe, socket or device; give a file")
    return path.open("rb")


def read_settings(path: Path) -> str:
    """Return the text of a TOML file of at most `LONGEST_SETTINGS` bytes.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be read, is a pipe, socket or device, or is longer; `strerror` says so.
        UnicodeDecodeError: it is not UTF-8 text.
    """
    with open_regular(path) as file:
        content = file.read(LONGEST_SETTINGS + 1)
    if len(content) > LONGEST_SETTINGS:
        raise OSError(errno.EFBIG, f"it has more than {LONGEST_SETTINGS:,} bytes; make it shorter")
    # As text files are read: lines may end as Windows ends them.
    return content.decode().replace("\r\n", "\n")
