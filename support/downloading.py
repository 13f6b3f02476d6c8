"""HTTP downloads that give up on silent or slow servers and resume interrupted transfers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featuretap.support.progress import progress_steps
from featuretap.support.version import __version__

if TYPE_CHECKING:
    from http.client import HTTPResponse

SILENCE = 30.0
"""Seconds without data after which a download fails, and over which the speed is measured."""

SLOWEST = 1_000
"""Minimum speed in bytes per second."""

RETRIES = 3
"""Maximum number of consecutive retries that receive less than the slowest server would send in `SILENCE` seconds."""

PAUSE = 1.0
"""Seconds before a download is resumed."""

CHUNK = 65_536
MEGABYTE = 1_000_000


class TooLargeError(ValueError):
    """The file exceeds the size limit."""


@dataclass
class _Partial:
    """The received part of a file, its total length, and the header that identifies its version."""

    content: bytearray = field(default_factory=bytearray)
    total: int | None = None
    validator: str = ""

    def begin(self, answer: HTTPResponse) -> None:
        """Read length and version from a response. Discard the received part unless the response continues it."""
        validator, length = _validator(answer), answer.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() and length.isascii() else None
        if answer.status == 206:
            start = f"bytes {len(self.content)}-"
            if validator != self.validator or not answer.headers.get("Content-Range", "").startswith(start):
                self.content.clear()
                self.validator = ""
                raise ConnectionError("the server sent a different part than requested")
            return
        self.content.clear()
        self.total, self.validator = total, validator


def download(address: str, most: int, *, label: str = "") -> bytes:
    """Download a URL into memory, so that a failed download leaves no file on disk.

    An interrupted download is resumed if the server can send the rest of the same version, identified by its ETag or
    date.

    Args:
        address: the URL.
        most: maximum size in bytes, since a server may never stop sending.
        label: label of the progress bar; "" shows none.

    Returns:
        The content.

    Raises:
        ValueError: the server announces or sends more than `most` bytes (`TooLargeError`), or the URL is invalid, for
            which urllib may also raise an `HTTPException`.
        OSError: the server cannot be reached, refuses the request, is silent, is slower than `SLOWEST`, or repeatedly
            closes the connection early.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError

    partial, furthest, fruitless = _Partial(), 0, 0
    with progress_steps(shown=bool(label)) as begin:
        while True:
            try:
                _receive(address, partial, label, begin, most)
                return bytes(partial.content)
            except (OSError, HTTPException) as error:
                received = len(partial.content)
                fruitless = 0 if received - furthest >= SLOWEST * SILENCE else fruitless + 1
                furthest = max(furthest, received)
                if not furthest or fruitless > RETRIES:
                    raise
                if isinstance(error, HTTPError):
                    # The error holds the connection open. The server may have rejected the range, so start over.
                    error.close()
                    partial = _Partial()
            time.sleep(PAUSE)


def _receive(
    address: str,
    partial: _Partial,
    label: str,
    begin: Callable[[str, int | None], Callable[..., None]],
    most: int,
) -> None:
    """Receive the missing part of a file."""
    from urllib.request import Request

    # Some servers refuse requests without a user agent.
    headers = {"User-Agent": f"featuretap/{__version__}"}
    if partial.content and partial.validator:
        headers |= {"Range": f"bytes={len(partial.content)}-", "If-Range": partial.validator}
    with closing(_parts(Request(address, headers=headers))) as parts:
        partial.begin(next(parts))
        _check_size(partial.total or 0, most)
        advance = begin(f"{label} (MB)", -(-partial.total // MEGABYTE) if partial.total else None)
        shown = 0
        for part in parts:
            partial.content += part
            advance(len(partial.content) // MEGABYTE - shown)
            shown = len(partial.content) // MEGABYTE
            _check_size(len(partial.content), most)
    if partial.total is not None and len(partial.content) < partial.total:
        raise ConnectionError(
            f"the server closed the connection after {len(partial.content):,} of {partial.total:,} bytes"
        )


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise TooLargeError(f"the server sends more than {most:,} bytes")


def _parts(request: Any) -> Generator[Any, None, None]:
    """Yield the response to a request and then its content, as long as the server is fast enough.

    A thread receives the data. A socket timeout restarts with every byte, and it does not limit name lookup or reading
    of the headers.
    """
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped = threading.Event()
    threading.Thread(target=_fill, args=(request, received, stopped), daemon=True).start()
    start, count = time.monotonic(), 0
    try:
        while True:
            try:
                part = received.get(timeout=SILENCE)
            except queue.Empty:
                raise TimeoutError(f"the server sent nothing for {SILENCE:g} s") from None
            if isinstance(part, Exception):
                raise part
            if part == b"":
                return
            yield part
            count += len(part) if isinstance(part, bytes) else 0
            seconds = time.monotonic() - start
            if seconds >= SILENCE:
                if count < SLOWEST * seconds:
                    raise TimeoutError(f"the server sent {count:,} bytes in {seconds:.0f} s")
                start, count = time.monotonic(), 0
    finally:
        stopped.set()


def _fill(request: Any, received: queue.SimpleQueue[Any], stopped: threading.Event) -> None:
    """Put the response, its content and b"" into a queue, or the error that ended the transfer."""
    from urllib.request import urlopen

    try:
        # Longer than the reader's timeout, whose message reports how much was received.
        with urlopen(request, timeout=2 * SILENCE) as answer:
            received.put(answer)
            while not stopped.is_set() and (part := answer.read1(CHUNK)):
                received.put(part)
        received.put(b"")
    except Exception as error:
        received.put(error)


def _validator(answer: HTTPResponse) -> str:
    """Return the header that identifies a version of a file, or ""."""
    tag: str = answer.headers.get("ETag", "")
    # Versions with the same weak tag may differ in their bytes.
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")
