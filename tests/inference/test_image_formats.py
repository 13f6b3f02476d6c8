"""Only the listed image formats are read, because other formats may run code or read other files."""

import ast
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import ROOT, Completed
from support.data_sets import mask, picture

from featuretap.registry.errors import DataError, ImageError
from featuretap.support.image_files import ImageFile
from featuretap.support.images import FORMATS, decode_image, open_image, read_image
from featuretap.workflows.datasets.data_set import image_problem, upright_size
from featuretap.workflows.datasets.formats import open_data
from featuretap.workflows.datasets.mask_values import Coding
from featuretap.workflows.extraction.computing import Batch, Preparation

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(path) (w) file closefile showpage\n"
ADVICE = "use a JPEG, PNG, GIF, BMP, PPM, TIFF, WebP, AVIF or JPEG 2000 file"
REFUSAL = "is a PostScript program, which is not supported"


def calls_of(code: str) -> set[str]:
    """Return which of Pillow's functions that open files are used by code, or by a script in one of its strings."""
    if "Image" not in code:
        return set()
    nodes = list(ast.walk(ast.parse(code)))
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    # Skip docstring examples, which show code of users.
    scripts = [string for string in strings if ">>>" not in string]
    found = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    if any("import" in script and re.search(r"Image\.open\((?!.*formats=)", script) for script in scripts):
        found.add("Image.open")
    return found & {"Image.open", "Image.OPEN", "PIL.Image.open", "ImageFile.Parser"}


def test_pillow_opens_files_in_one_place() -> None:
    paths = [
        path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in (".venv", ".typing", "tests")
    ]
    found = {str(path.relative_to(ROOT)): calls_of(path.read_text()) for path in paths}
    assert {path: calls for path, calls in found.items() if calls} == {"support/images.py": {"Image.OPEN"}}
    assert calls_of("from PIL import Image\nwith Image.open('a.png') as a: a.load()") == {"Image.open"}
    assert calls_of("SCRIPT = 'import PIL; PIL.Image.open(path)'") == {"Image.open"}
    assert calls_of("SCRIPT = 'import PIL; PIL.Image.open(path, formats=[])'") == set()


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("a.jpg", {}, "JPEG"),
        ("a.png", {}, "PNG"),
        ("a.gif", {}, "GIF"),
        ("a.bmp", {}, "BMP"),
        ("a.ppm", {}, "PPM"),
        ("a.tif", {}, "TIFF"),
        ("a.webp", {}, "WEBP"),
        ("a.avif", {}, "AVIF"),
        ("a.jp2", {}, "JPEG2000"),
        ("a.mpo", {"save_all": True, "append_images": [Image.new("RGB", (12, 8))]}, "MPO"),
    ],
)
def test_images_of_the_listed_formats_are_read(tmp_path: Path, name: str, options: dict[str, Any], found: str) -> None:
    path = tmp_path / "image.png"
    buffer = io.BytesIO()
    buffer.name = name
    Image.new("RGB", (12, 8), "red").save(buffer, **options)
    path.write_bytes(buffer.getvalue())
    with open_image(path, str(path)) as image:
        assert image.format == found
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (12, 8))
    red, green, blue = image.getpixel((6, 4))
    assert red > 240
    assert max(green, blue) < 20


def read_features(path: Path) -> None:
    preparation = Preparation(None, (8, 8))  # type: ignore[arg-type]
    problems = preparation.read(Batch(0, [ImageFile(path.name, str(path))])).bad
    raise ImageError(problems[0][1])


READERS: dict[str, Callable[[Path], object]] = {
    "read_image": read_image,
    "decode_image": lambda path: decode_image(io.BytesIO(path.read_bytes()), path.name),
    "upright_size": lambda path: upright_size(str(path)),
    "mask": lambda path: Coding(("a", "b"), "value", {0: 0, 1: 1}).read(str(path)),
    "features": read_features,
}


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which of Pillow's readers for other formats are called."""
    called: list[str] = []

    def called_by(name: str) -> Callable[..., bool]:
        return lambda *_: bool(called.append(name)) or True

    Image.init()
    for name in set(Image.OPEN) - set(FORMATS):
        monkeypatch.setitem(Image.OPEN, name, (called_by(f"{name} factory"), called_by(f"{name} accept")))  # type: ignore[arg-type]
    return called


@pytest.mark.parametrize("reader", READERS)
def test_a_program_named_as_an_image_is_not_run(tmp_path: Path, reader: str, others: list[str]) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(POSTSCRIPT)
    with pytest.raises((ImageError, DataError)) as error:
        READERS[reader](path)
    assert f"photo.png' {REFUSAL}; {ADVICE}" in str(error.value)
    assert others == []
    with pytest.raises(Exception, match=r"."):
        Image.open(path)
    assert others != []


@pytest.mark.parametrize("command", [["predict"], ["taps", "--weights", "none"], ["extract", "--weights", "none"]])
def test_commands_refuse_a_program_in_one_line(
    tmp_path: Path, run: Callable[..., Completed], command: list[str], others: list[str]
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(POSTSCRIPT)
    out = [] if command == ["predict"] else ["--out", tmp_path / "out"]
    done = run(command[0], path, *command[1:], *out)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"photo.png' {REFUSAL}; {ADVICE}" in done.err
    assert others == []


def test_a_data_set_names_the_program_among_its_images(tmp_path: Path, others: list[str]) -> None:
    for name in "abcd":
        picture(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}.png", [[0, 1] * 6] * 8)
    data = open_data(str(tmp_path), "segmentation")
    path = Path(data.train[0].name)
    path.write_bytes(POSTSCRIPT)
    assert data.train[0].check() == image_problem(str(path)) == f"{str(path)!r} {REFUSAL}"
    (tmp_path / "masks" / "a.png").write_bytes(POSTSCRIPT)
    with pytest.raises(DataError, match=r"1 problem in .*: the mask '.*a.png' is a PostScript program"):
        open_data(str(tmp_path), "segmentation")
    assert others == []


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"\xc5\xd0\xd3\xc6", "a PostScript program"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b'\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG or other XML document"),
        (b"<?xml version='1.0'?>", "an SVG or other XML document"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image"),
        (b"8BPS\0\1", "a Photoshop image"),
        (b"icns\0\0\0\x08", "an ICNS icon"),
        (b"\0\0\1\0\1\0", "an icon or cursor of Windows"),
        (b"\xd7\xcd\xc6\x9a\0\0", "a Windows metafile"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an OLE file, such as FlashPix"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"SIMPLE  =                    T", "a FITS image"),
        (b"\0" * 128 + b"DICM", "a DICOM file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_format_that_is_refused_is_named(tmp_path: Path, beginning: bytes, kind: str, others: list[str]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(beginning + b"\0" * 600)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == f"{str(path)!r} is {kind}, which is not supported; {ADVICE}"
    assert others == []


@pytest.mark.parametrize("place", ["/dev/zero", "pipe.png"])
@pytest.mark.parametrize("command", ["predict", "taps", "extract"])
def test_pipes_and_devices_are_refused_without_being_opened(
    tmp_path: Path, run: Callable[..., Completed], monkeypatch: pytest.MonkeyPatch, command: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    more = {"predict": [], "taps": ["--weights", "none"], "extract": ["--weights", "none", "--out", "out"]}[command]
    done = run(command, place, *more)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    name = Path(place).name if command == "extract" else place
    assert f"cannot read the image {name!r}: it is a pipe, socket or device; use a file" in done.err.replace(
        "'/dev/zero'", f"{name!r}"
    )


@pytest.mark.parametrize("command", ["predict", "taps", "extract", "train"])
def test_names_longer_than_any_file_s_are_refused_in_one_line(
    run: Callable[..., Completed], tmp_path: Path, command: str
) -> None:
    more = {"extract": ["--out", tmp_path / "out"], "train": ["--backbone", "mobilenet_v1_025"]}
    done = run(command, "a" * 5000, *more.get(command, []))
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert len(done.err) < 1100


def test_a_link_to_itself_is_refused_in_one_line(
    tmp_path: Path, run: Callable[..., Completed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").symlink_to("a.png")
    done = run("predict", "a.png", "--out", "pictures")
    assert done.err == "featuretap: cannot read the image 'a.png': Too many levels of symbolic links\n"


def test_a_damaged_image_of_a_listed_format_is_not_tried_as_another(tmp_path: Path, others: list[str]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(100))
    with pytest.raises(ImageError):
        read_image(path)
    assert others == []
