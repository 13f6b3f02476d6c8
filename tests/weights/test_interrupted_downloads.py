"""Downloads from silent, slow or disconnecting servers: they time out, resume, and leave no partial files."""

import contextlib
import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.support import downloading
from featuretap.support.downloading import TooLargeError, download
from featuretap.weights.downloads import find_or_fetch, torch_hub_path
from featuretap.weights.hub import SITE

CONTENT = bytes(range(256)) * 400
HALF = len(CONTENT) // 2
MOST = len(CONTENT)
OTHER = CONTENT[::-1]

Answer = Callable[[socket.socket, dict[str, str]], None]


class Scripted:
    """A server that sends one prepared response per connection, and repeats the last one."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[dict[str, str]] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.over = threading.Event()

    def __enter__(self) -> "Scripted":
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            fields = [line.decode().strip() for line in iter(lines.readline, b"\r\n") if line]
            asked = {"Request": fields[0]} | dict(field.split(": ", 1) for field in fields[1:])
            self.asked.append(asked)
            answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
            with contextlib.suppress(OSError):
                answer(connection, asked)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.delenv("FEATURETAP_OFFLINE")
    monkeypatch.setattr(downloading, "SILENCE", 0.4)
    monkeypatch.setattr(downloading, "SLOWEST", 10_000)
    monkeypatch.setattr(downloading, "PAUSE", 0.01)
    with Scripted() as site:
        yield site


def head(length: object, *fields: str, status: str = "200 OK") -> bytes:
    """Return the status line and headers of a response."""
    return "\r\n".join(
        [f"HTTP/1.1 {status}", f"Content-Length: {length}", *fields, "Connection: close", "", ""]
    ).encode()


def complete(connection: socket.socket, asked: dict[str, str]) -> None:
    connection.sendall(head(len(CONTENT)) + CONTENT)


def half(*fields: str, content: bytes = CONTENT, status: str = "200 OK") -> Answer:
    """Send half of a file and close the connection."""
    return lambda connection, asked: connection.sendall(head(len(content), *fields, status=status) + content[:HALF])


def rest(*fields: str, content: bytes = CONTENT) -> Answer:
    """Send the byte range that the client requested."""

    def answer(connection: socket.socket, asked: dict[str, str]) -> None:
        start = int(asked["Range"].removeprefix("bytes=").removesuffix("-"))
        place = f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}"
        part = content[start:]
        connection.sendall(head(len(part), place, *fields, status="206 Partial Content") + part)

    return answer


def circular(connection: socket.socket, asked: dict[str, str]) -> None:
    connection.sendall(head(0, f"Location: {asked['Request'].split()[1]}", status="302 Found"))


def silent(connection: socket.socket, asked: dict[str, str]) -> None:
    connection.recv(1)


def silent_in_the_middle(*fields: str) -> Answer:
    def answer(connection: socket.socket, asked: dict[str, str]) -> None:
        half(*fields)(connection, asked)
        connection.recv(1)

    return answer


def dripping(before: bytes) -> Answer:
    """Send some bytes, then one byte at a time, always just before the socket would time out."""

    def answer(connection: socket.socket, asked: dict[str, str]) -> None:
        connection.sendall(before)
        while True:
            time.sleep(0.05)
            connection.sendall(b"x")

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (silent, "the server sent nothing for 0.4 s"),
        (dripping(b"HTTP/1.1 200 OK\r\nX-Long: "), "the server sent nothing for 0.4 s"),
        (dripping(head(10**6)), r"the server sent \d+ bytes in 0 s"),
        (silent_in_the_middle(), "the server sent nothing for 0.4 s"),
        (half(), "the server closed the connection after 51,200 of 102,400 bytes"),
        (lambda connection, asked: None, "Remote end closed connection without response"),
        (lambda connection, asked: connection.sendall(b"nonsense\r\n\r\n"), "nonsense"),
        (
            circular,
            "HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop. "
            "The last 30x error message was: Found",
        ),
    ],
    ids=["silent", "dripping headers", "dripping", "half silent", "half", "closed", "nonsense", "redirects"],
)
def test_downloads_that_cannot_end_fail_and_leave_nothing(
    site: Scripted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configured: Callable[[str], Registry],
    answer: Answer,
    reason: str,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    site.answers = [answer]
    registry = configured(
        f'[weights."mobilenet_v2.mine"]\nurl = "{site.url}/net.pth"\nsha256 = "{"0" * 64}"\nlayout = "torchvision"\n'
        "norm_eps = 1e-5\n"
    )
    message = f"cannot download 'mobilenet_v2.mine' from {site.url}/net.pth: {reason}"
    with pytest.raises(WeightsError, match=message) as error:
        registry.build("mobilenet_v2", pretrained="mine")
    assert "\n" not in str(error.value)
    assert [path for path in (tmp_path / "torch").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("field", ['ETag: "one"', "Last-Modified: Fri, 27 Nov 2026 12:00:00 GMT"], ids=["tag", "date"])
@pytest.mark.parametrize("first", [half, silent_in_the_middle], ids=["closed", "silent"])
def test_what_was_received_is_kept_where_the_server_sends_the_rest(
    site: Scripted, field: str, first: Callable[..., Answer]
) -> None:
    site.answers = [first(field), rest(field)]
    assert download(f"{site.url}/net.pth", MOST) == CONTENT
    assert [asked.get("Range") for asked in site.asked] == [None, f"bytes={HALF}-"]
    assert site.asked[1]["If-Range"] == field.partition(": ")[2]


@pytest.mark.parametrize("fields", [(), ('ETag: W/"weak"',)], ids=["no tag", "weak tag"])
def test_a_file_whose_version_is_not_known_is_received_from_its_start(site: Scripted, fields: tuple[str, ...]) -> None:
    site.answers = [half(*fields), complete]
    assert download(f"{site.url}/net.pth", MOST) == CONTENT
    assert [asked.get("Range") for asked in site.asked] == [None, None]


@pytest.mark.parametrize(
    "second",
    [
        lambda connection, asked: connection.sendall(head(len(OTHER), 'ETag: "two"') + OTHER),
        rest('ETag: "two"', content=OTHER),
        lambda connection, asked: connection.sendall(
            head(1, 'ETag: "one"', "Content-Range: bytes 7-7/9", status="206 Partial Content") + b"x"
        ),
        lambda connection, asked: connection.sendall(head(0, status="416 Range Not Satisfiable")),
        lambda connection, asked: connection.sendall(head(0, status="503 Service Unavailable")),
    ],
    ids=["sent from its start", "rest of the other", "another part", "no such part", "unavailable"],
)
def test_parts_of_two_versions_are_never_joined(site: Scripted, second: Answer) -> None:
    site.answers = [half('ETag: "one"'), second, lambda connection, asked: connection.sendall(head(len(OTHER)) + OTHER)]
    assert download(f"{site.url}/net.pth", MOST) == OTHER


def test_a_download_goes_on_as_long_as_each_connection_yields_enough(site: Scripted) -> None:
    tag = 'ETag: "one"'

    def tenth(connection: socket.socket, asked: dict[str, str]) -> None:
        start = int(asked.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        place = f"Content-Range: bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        status = "206 Partial Content" if "Range" in asked else "200 OK"
        part = CONTENT[start : start + len(CONTENT) // 10]
        connection.sendall(head(len(CONTENT) - start, place, tag, status=status) + part)

    site.answers = [tenth]
    assert download(f"{site.url}/net.pth", MOST) == CONTENT
    assert len(site.asked) == 10


def test_a_download_without_progress_is_tried_four_times_and_one_without_an_answer_once(site: Scripted) -> None:
    site.answers = [half()]
    with pytest.raises(ConnectionError):
        download(f"{site.url}/net.pth", MOST)
    assert len(site.asked) == 1 + downloading.RETRIES + 1
    site.asked.clear()
    site.answers = [silent]
    with pytest.raises(TimeoutError):
        download(f"{site.url}/net.pth", MOST)
    assert len(site.asked) == 1


@pytest.mark.parametrize("length", ["-5", "many", "²"])
def test_a_length_that_is_not_a_number_is_not_believed(site: Scripted, length: str) -> None:
    answer = head("LENGTH").replace(b"LENGTH", length.encode("latin-1")) + CONTENT
    site.answers = [lambda connection, asked: connection.sendall(answer)]
    assert download(f"{site.url}/net.pth", MOST) == CONTENT


def test_a_chunked_answer_that_is_cut_off_is_not_taken_for_the_file(site: Scripted) -> None:
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    site.answers = [
        lambda connection, asked: connection.sendall(start + b"5\r\nhello\r\nff\r\nhal"),
        lambda connection, asked: connection.sendall(start + b"5\r\nhello\r\n0\r\n\r\n"),
    ]
    assert download(f"{site.url}/net.pth", MOST) == b"hello"


INTERRUPTED = """
import os, signal, sys, threading
from featuretap import registry
from featuretap.weights.downloads import find_or_fetch
threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    find_or_fetch(sys.argv[1], {})
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupted_download_leaves_nothing_and_does_not_wait(site: Scripted, tmp_path: Path) -> None:
    site.answers = [silent_in_the_middle()]
    command = [sys.executable, "-c", INTERRUPTED, f"{site.url}/net.pth"]
    ran = subprocess.run(command, capture_output=True, text=True, env={"TORCH_HOME": str(tmp_path)})
    assert (ran.stdout, ran.stderr) == ("interrupted\n", "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_three_processes_download_one_file_at_once(site: Scripted, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    site.answers = [half('ETag: "one"'), half('ETag: "one"'), complete]
    code = "import sys; from featuretap.weights.downloads import _download; from pathlib import Path; "
    code += "_download(sys.argv[1], Path(sys.argv[2]), sys.argv[3], 10**6)"
    command = [sys.executable, "-c", code, f"{site.url}/net.pth", str(tmp_path / "net.pth"), digest]
    started = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert [(path.name, path.read_bytes() == CONTENT) for path in tmp_path.iterdir()] == [("net.pth", True)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (silent, "timed out"),
        (silent_in_the_middle(), "timed out"),
        (half(), "peer closed connection without sending complete message body"),
    ],
    ids=["silent", "half silent", "half"],
)
def test_downloads_from_the_hub_that_cannot_end_fail_and_leave_no_part(
    site: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, reason: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    # huggingface_hub waits a second between attempts.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    digest = hashlib.sha256(CONTENT).hexdigest()
    described = (f"X-Repo-Commit: {digest[:40]}", f'ETag: "{digest}"', f'X-Linked-ETag: "{digest}"')

    def answer_as_the_hub(connection: socket.socket, asked: dict[str, str]) -> None:
        if asked["Request"].startswith("HEAD"):
            connection.sendall(head(len(CONTENT), *described))
        else:
            answer(connection, asked)

    site.answers = [answer_as_the_hub]
    with pytest.raises(WeightsError, match=f"cannot download 'hf://owner/net/net.pth': {reason}"):
        find_or_fetch("hf://owner/net/net.pth", {SITE: site.url})
    assert list(tmp_path.rglob("*incomplete*")) == list(tmp_path.glob("*/blobs/*")) == []


def endless(connection: socket.socket, asked: dict[str, str]) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(bytes(100_000))


@pytest.mark.parametrize("answer", [endless, lambda c, asked: c.sendall(head(10**12))], ids=["endless", "announced"])
@pytest.mark.parametrize(("megabytes", "most"), [("megabytes = 0.5", "1,550,000"), ("", "3,000,000")])
def test_a_server_that_sends_more_than_the_file_has_is_refused(
    site: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    configured: Callable[[str], Registry],
    answer: Answer,
    megabytes: str,
    most: str,
) -> None:
    monkeypatch.setattr("featuretap.weights.downloads.LARGEST", 3_000_000)
    site.answers = [answer]
    registry = configured(
        f'[weights."mobilenet_v2.mine"]\nurl = "{site.url}/net.pth"\nsha256 = "{"0" * 64}"\nlayout = "torchvision"\n'
        f"norm_eps = 1e-5\n{megabytes}\n"
    )
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v2", pretrained="mine")
    refusal = f"{site.url}/net.pth: the server sends more than {most} bytes; "
    assert str(error.value).startswith(f"cannot download 'mobilenet_v2.mine' from {refusal}")
    assert len(site.asked) == 1


@pytest.mark.parametrize("answer", [endless, lambda c, asked: c.sendall(head(10**12))], ids=["endless", "announced"])
def test_an_address_that_sends_without_end_is_refused(
    site: Scripted, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setattr("featuretap.weights.downloads.LARGEST", 3_000_000)
    site.answers = [answer]
    with pytest.raises(WeightsError) as error:
        find_or_fetch(f"{site.url}/net.pth", {})
    assert str(error.value) == (
        f"cannot download '{site.url}/net.pth': the server sends more than 3,000,000 bytes; put the file at "
        f"{torch_hub_path('net-' + hashlib.sha256(f'{site.url}/net.pth'.encode()).hexdigest()[:8] + '.pth')}"
    )


def test_a_file_of_the_largest_size_is_received(site: Scripted) -> None:
    site.answers = [complete]
    assert download(f"{site.url}/net.pth", len(CONTENT)) == CONTENT
    with pytest.raises(TooLargeError):
        download(f"{site.url}/net.pth", len(CONTENT) - 1)


def test_a_hub_that_is_silent_before_a_file_is_given_up(
    site: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.1)
    # huggingface_hub releases before 1.0 do not retry.
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.1, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    site.answers = [silent]
    with pytest.raises(WeightsError, match=r"cannot download 'hf://owner/net/net.pth': timed out"):
        find_or_fetch("hf://owner/net/net.pth", {SITE: site.url})
    assert {asked["Request"].split()[0] for asked in site.asked} == {"HEAD"}
