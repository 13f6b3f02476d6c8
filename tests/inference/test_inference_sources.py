"""Image files, folders and URLs: which images are found, in which order, and errors for those that cannot be read."""

import http.server
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featuretap.registry.errors import DataError, ImageError
from featuretap.support import downloading
from featuretap.workflows.inference import sources
from featuretap.workflows.inference.sources import ImageSource, find_sources, picture_paths, read_ahead, read_source


def image(path: Path, colour: str = "red", size: tuple[int, int] = (5, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@dataclass
class Site:
    """A local web server that maps each path to a status and content."""

    address: str = ""
    pages: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("FEATURETAP_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.headers["User-Agent"])
            status, content = site.pages.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def encoded(colour: str = "red") -> bytes:
    file = BytesIO()
    Image.new("RGB", (5, 4), colour).save(file, "PNG")
    return file.getvalue()


def refusal(text: str) -> str:
    (source,) = find_sources([text])
    with pytest.raises(ImageError) as error:
        read_source(source)
    return str(error.value)


def test_files_folders_and_addresses_keep_their_order(tmp_path: Path) -> None:
    image(tmp_path / "folder" / "b.png")
    image(tmp_path / "folder" / "a" / "z.JPG")
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    given = [str(tmp_path / "lost.png"), "HTTPS://example.org/a%20b/cat.jpg?x=1", str(tmp_path / "folder")]
    assert find_sources([*given, "http://example.org/"]) == [
        ImageSource(given[0], tmp_path / "lost.png", Path("lost")),
        ImageSource(given[1], None, Path("cat")),
        ImageSource(str(tmp_path / "folder/a/z.JPG"), tmp_path / "folder/a/z.JPG", Path("a/z")),
        ImageSource(str(tmp_path / "folder/b.png"), tmp_path / "folder/b.png", Path("b")),
        ImageSource("http://example.org/", None, Path("example")),
    ]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no images; supported suffixes are \.apng"):
        find_sources([str(tmp_path)])


def test_pictures_of_the_same_name_are_numbered_and_folders_kept(tmp_path: Path) -> None:
    files = [image(tmp_path / name) for name in ("a/1.png", "b/1.png", "b/1.jpg")]
    found = find_sources([*map(str, files), "http://example.org/1.png", str(tmp_path)])
    paths = picture_paths(found, tmp_path / "out")
    assert [str(paths[source].relative_to(tmp_path / "out")) for source in found] == [
        *("1.png", "1-2.png", "1-3.png", "1-4.png"),
        *("a/1.png", "b/1.png", "b/1-2.png"),
    ]
    assert list(paths) == found


def test_the_same_image_twice_is_drawn_once(tmp_path: Path) -> None:
    found = find_sources([str(image(tmp_path / "1.jpg"))] * 2)
    assert picture_paths(found, tmp_path / "out") == {found[0]: tmp_path / "out" / "1.png"}


@pytest.mark.parametrize("folder", [".", "link"])
def test_a_picture_never_overwrites_an_image(tmp_path: Path, folder: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    found = find_sources([str(image(tmp_path / "1.png"))])
    with pytest.raises(DataError) as error:
        picture_paths(found, tmp_path / folder)
    assert str(error.value) == (
        f"the picture '{tmp_path / folder / '1.png'}' would overwrite an image; choose another folder for pictures"
    )


def test_images_are_read_in_their_order_and_errors_take_their_place(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{number:02}.png", size=(number + 1, 1)) for number in range(40)]
    paths[7].write_bytes(b"rubbish")
    paths[39].unlink()
    found = list(read_ahead(find_sources(map(str, paths))))
    assert [source.path for source, _ in found] == paths
    for number, (_, outcome) in enumerate(found):
        if number in (7, 39):
            assert isinstance(outcome, ImageError)
        else:
            assert isinstance(outcome, Image.Image)
            assert outcome.width == number + 1
    assert str(found[39][1]) == f"cannot read the image '{paths[39]}': No such file or directory"


def test_only_a_few_images_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(source: ImageSource) -> Image.Image:
        read.append(source.name)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(sources, "read_source", counted)
    images = read_ahead(find_sources([str(tmp_path / f"{number}.png") for number in range(100)]))
    next(images)
    images.close()  # type: ignore[attr-defined]
    assert len(read) <= 2 * sources.READERS


def test_an_image_is_upright_and_in_colour(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("L", (5, 4), 9)
    picture.save(tmp_path / "turned.jpg", exif=exif)
    (source,) = find_sources([str(tmp_path / "turned.jpg")])
    found = read_source(source)
    assert (found.mode, found.size) == ("RGB", (4, 5))


def test_an_address_is_read(site: Site) -> None:
    site.pages["/cat.png?size=1"] = (200, encoded("blue"))
    (source,) = find_sources([f"{site.address}/cat.png?size=1"])
    found = read_source(source)
    assert (np.asarray(found) == (0, 0, 255)).all()
    assert site.asked[0].startswith("featuretap/")


@pytest.mark.parametrize(
    ("status", "content", "problem"),
    [
        (404, b"", "cannot download 'ADDRESS': 404 Not Found"),
        (500, encoded(), "cannot download 'ADDRESS': 500 Internal Server Error"),
        (200, b"", "'ADDRESS' is empty; use a JPEG, PNG or other image file"),
        (
            200,
            b"<html></html>",
            "'ADDRESS' is an HTML page, which is not supported; use a JPEG, PNG, GIF, BMP, PPM, TIFF, WebP, "
            "AVIF or JPEG 2000 file",
        ),
    ],
)
def test_an_address_without_an_image_says_why(site: Site, status: int, content: bytes, problem: str) -> None:
    site.pages["/x"] = (status, content)
    address = f"{site.address}/x"
    assert refusal(address) == problem.replace("ADDRESS", address)


def test_downloads_are_limited_in_size(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAXIMUM_BYTES", 1_000_000)
    site.pages["/x"] = (200, bytes(1_000_001))
    assert refusal(f"{site.address}/x") == (
        f"'{site.address}/x' is larger than 1 MB; download it yourself and use the local file"
    )
    site.pages["/x"] = (200, bytes(1_000_000))
    assert "not an image" in refusal(f"{site.address}/x")


def test_a_server_that_does_not_answer_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x.png"
        assert refusal(address) == f"cannot download '{address}': the server sent nothing for 0.2 s"
    assert refusal(address) == f"cannot download '{address}': Connection refused"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://[x/y.png", "Invalid IPv6 URL"),
        ("http:///x.png", "no host given"),
        ("http://127.0.0.1:x/y.png", "nonnumeric port: 'x'"),
    ],
)
def test_an_invalid_address_is_named(site: Site, address: str, problem: str) -> None:
    assert refusal(address) == f"cannot download '{address}': {problem}"


def test_a_host_that_is_not_known_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    address = "http://nowhere.invalid/x.png"
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    assert refusal(address) == f"cannot download '{address}': Name or service not known"


def test_downloads_can_be_forbidden(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURETAP_OFFLINE", "1")
    address = f"{site.address}/x"
    assert refusal(address) == f"cannot download '{address}': FEATURETAP_OFFLINE forbids downloads; use a local file"
    assert site.asked == []


def test_pictures_drawn_earlier_are_not_taken_for_images(tmp_path: Path) -> None:
    for name in ("cat.png", "drawn/cat.png", "other/dog.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    found = [source.path for source in find_sources([str(tmp_path)], tmp_path / "drawn")]
    assert found == [tmp_path / "cat.png", tmp_path / "other" / "dog.png"]
    assert len(find_sources([str(tmp_path)], tmp_path)) == len(find_sources([str(tmp_path)])) == 3
