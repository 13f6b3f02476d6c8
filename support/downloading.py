"""Downloads over HTTP that end: silent and slow servers are given up, and downloads that break off are resumed."""

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
"""Seconds without a byte after which a server is given up, and over which its speed is measured."""

SLOWEST = 1_000
"""Bytes a second."""

RETRIES = 3
"""Times in a row that a download is resumed and yields less than the slowest server would in `SILENCE`."""

PAUSE = 1.0
"""Seconds before a download is resumed."""

CHUNK = 65_536
MEGABYTE = 1_000_000


class TooLargeError(ValueError):
    """A file is larger than is downloaded."""


@dataclass
class _Partial:
    """What has been received of a file, the length it has, and the header that tells its versions apart."""

    content: bytearray = field(default_factory=bytearray)
    total: int | None = None
    validator: str = ""

    def begin(self, answer: HTTPResponse) -> None:
        """Take the length and the version from an answer; drop what was received unless it continues that."""
        validator, length = _validator(answer), answer.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() and length.isascii() else None
        if answer.status == 206:
            start = f"bytes {len(self.content)}-"
            if validator != self.validator or not answer.headers.get("Content-Range", "").startswith(start):
                self.content.clear()
                self.validator = ""
                raise ConnectionError("the server sent another part than was asked for")
            return
        self.content.clear()
        self.total, self.validator = total, validator


def download(address: str, most: int, *, label: str = "") -> bytes:
    """Return the content of a URL.

    It is kept in memory, so that nothing is left on the disk where a download fails. What was received before a
    connection broke is kept if the server can send the rest of the same version, which its ETag or its date tells.

    Args:
        address: the URL.
        most: bytes of the largest file that is received, since a server may send without end.
        label: of the progress bar; "" shows none.

    Raises:
        ValueError: a `TooLargeError`; the server announces or sends more than `most` bytes.
        OSError: the server cannot be reached or refuses, is silent, is slower than `SLOWEST`, or closes the connection
            early, again and again. What urllib raises for invalid addresses is a ValueError or an HTTPException.
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
                    # It is the server's answer too, and holds the connection open. The rest may be what it refuses.
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
    """Receive what is missing of a file."""
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
    """Yield the answer to a request, then its content, as long as the server is fast enough.

    A thread receives them: the timeout of a socket starts again with each byte, and neither looking up a host nor
    reading headers can be bounded otherwise.
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
    """Put the answer to a request, its content and b"" into a queue, or the error that ends it."""
    from urllib.request import urlopen

    try:
        # Longer than the other side waits, which says what was received until then.
        with urlopen(request, timeout=2 * SILENCE) as answer:
            received.put(answer)
            while not stopped.is_set() and (part := answer.read1(CHUNK)):
                received.put(part)
        received.put(b"")
    except Exception as error:
        received.put(error)


def _validator(answer: HTTPResponse) -> str:
    """Return the header by which a server tells versions of a file apart, or ""."""
    tag: str = answer.headers.get("ETag", "")
    # A weak tag is of versions that mean the same, and need not have the same bytes.
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")
