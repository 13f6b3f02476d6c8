"""Read files named by the user. Pipes and devices are rejected, since reading them may block or never end."""

from __future__ import annotations

import errno
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

LONGEST_SETTINGS = 1_000_000
"""Maximum size in bytes of a TOML file. The parser needs a hundred times as much memory."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: path of the file.

    Returns:
        The open file.

    Raises:
        OSError: the file cannot be opened, or is a pipe, socket or device. `strerror` is the message.
        ValueError: the path is not a valid file name.
    """
    mode = path.stat().st_mode
    if not (S_ISREG(mode) or S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe, socket or device; use a file")
    return path.open("rb")


def read_settings(path: Path) -> str:
    """Return the text of a TOML file of at most `LONGEST_SETTINGS` bytes.

    Args:
        path: path of the file.

    Returns:
        The text, with Unix line endings.

    Raises:
        OSError: the file cannot be read, is too long, or is a pipe, socket or device. `strerror` is the message.
        UnicodeDecodeError: the file is not UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(LONGEST_SETTINGS + 1)
    if len(content) > LONGEST_SETTINGS:
        raise OSError(errno.EFBIG, f"it has more than {LONGEST_SETTINGS:,} bytes; make it shorter")
    # Like text mode, which `read_text` would use.
    return content.decode().replace("\r\n", "\n")
