"""Image sizes are checked against a limit before decoding, and large images are decoded one at a time."""

import io
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from PIL import GifImagePlugin, Image, ImageFile

from featuretap.models.transforms import compose
from featuretap.registry.errors import DataError, ImageError, OptionError
from featuretap.runtimes.preparing import prepare
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support import images
from featuretap.support.images import convert_mode, decode_image, read_image
from featuretap.support.workers import raise_errors
from featuretap.workflows.datasets.data_set import image_problem, upright_size
from featuretap.workflows.inference import predicting, sources
from featuretap.workflows.inference.sources import ImageSource, read_ahead
from featuretap.workflows.training.loop import make_loader
from featuretap.workflows.training.tasks.classification import ClassificationTask

PREPROCESSING = Preprocessing(256, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """Return a grayscale PNG that declares a size but contains no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + end


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if an image is decoded."""

    def load(image: ImageFile.ImageFile) -> Any:
        pytest.fail(f"decoded {image.size}")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(("width", "height"), [(1, 100_000_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_images_beyond_pillows_limit_are_refused_by_their_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(width, height))
    problem = f"{str(path)!r} of {width}×{height} pixels exceeds FEATURETAP_MAX_PIXELS=89478485"
    for read in (read_image, lambda path: decode_image(io.BytesIO(path.read_bytes()), str(path))):
        with pytest.raises(ImageError) as error:
            read(path)
        assert str(error.value) == f"{problem}; set it higher to read larger images"
    assert image_problem(str(path)) == problem
    with pytest.raises(ImageError):
        upright_size(str(path))


def test_the_limit_is_set_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (20, 10)).save(path)
    monkeypatch.setenv("FEATURETAP_MAX_PIXELS", "199")
    with pytest.raises(ImageError, match=r"of 20×10 pixels exceeds FEATURETAP_MAX_PIXELS=199; set it higher"):
        read_image(path)
    monkeypatch.setenv("FEATURETAP_MAX_PIXELS", "200")
    assert read_image(path).size == (20, 10)


def test_a_higher_limit_is_pillows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (20, 10)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
    with pytest.raises(ImageError, match="exceeds FEATURETAP_MAX_PIXELS=90;"):
        read_image(path)
    monkeypatch.setenv("FEATURETAP_MAX_PIXELS", "1000")
    # Pillow warns about large crops, and under its own limit would refuse this one.
    assert read_image(path).crop((0, 0, 19, 10)).size == (19, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path).size == (20, 10)
    assert Image.MAX_IMAGE_PIXELS is None
    monkeypatch.delenv("FEATURETAP_MAX_PIXELS")
    assert read_image(path).size == (20, 10)


@pytest.mark.parametrize("stated", ["many", "-1", "0", "1e9", "9" * 5000], ids=["text", "-1", "0", "1e9", "long"])
def test_a_limit_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    monkeypatch.setenv("FEATURETAP_MAX_PIXELS", stated)
    path = tmp_path / "a.png"
    Image.new("L", (2, 2)).save(path)
    with pytest.raises(OptionError) as error:
        read_image(path)
    assert str(error.value).startswith(f"FEATURETAP_MAX_PIXELS must be a positive integer, got {stated!r}"[:600])
    assert str(error.value).endswith("; use a number such as 200000000")


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_scaling_takes_a_few_bytes_a_pixel(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    monkeypatch.setattr(images, "BLOCK", 2**12)
    image = Image.fromarray(np.full((512, 512), 40_000 if kind != np.float32 else 0.6, kind))
    tracemalloc.start()
    convert_mode(image, "L")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 14 * 512 * 512


def test_an_image_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (2, 2)).save(path)

    def load(image: ImageFile.ImageFile) -> Any:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == f"{str(path)!r} does not fit into memory"


def test_threads_decode_large_images_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (20, 10)).save(path)
    inside = threading.Semaphore(1)
    together = threading.Barrier(2, timeout=10)

    def convert(image: Image.Image, *_: object) -> Image.Image:
        assert inside.acquire(blocking=False), "two images at once"
        sleep(0.002)
        inside.release()
        return image

    def convert_together(image: Image.Image, *_: object) -> Image.Image:
        together.wait()
        return image

    with ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(images, "convert_mode", convert_together)
        list(pool.map(read_image, [path] * 4))
        monkeypatch.setattr(images, "LARGE", 199)
        monkeypatch.setattr(images, "convert_mode", convert)
        list(pool.map(read_image, [path] * 40))


def test_large_images_are_decoded_when_their_turn_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    found = []
    for number in range(6):
        Image.new("L", (20, 10)).save(tmp_path / f"{number}.png")
        found.append(ImageSource(f"{number}.png", tmp_path / f"{number}.png", Path(str(number))))

    def decode(source: Any, name: str) -> Image.Image:
        decoded.append(name)
        return decode_image(source, name)

    monkeypatch.setattr(sources, "decode_image", decode)
    monkeypatch.setattr(images, "LARGE", 199)
    for count, (source, image) in enumerate(read_ahead(found), 1):
        assert isinstance(image, Image.Image)
        assert decoded == [each.name for each in found[:count]]
        assert decoded[-1] == source.name
    assert len(decoded) == 6


def test_a_large_image_ends_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "MAXIMUM_PIXELS_READ", 250)
    remaining: Iterator[Any] = iter([("source", Image.new("L", (20, 10)))] * 5)
    lengths = [len(predicting._next_batch(remaining, 16)) for _ in range(4)]
    assert lengths == [2, 2, 1, 0]
    assert len(predicting._next_batch(iter([("source", ImageError("bad"))] * 5), 3)) == 3


@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (60_000, 1)])
def test_strips_that_resizing_would_make_gigantic_are_refused(width: int, height: int) -> None:
    strip = Image.new("RGB", (width, height))
    problem = f"of {width}×{height} pixels is too elongated to be resized to a shorter side of 256; crop it"
    calls: list[Callable[[], object]] = [
        lambda: prepare(strip, PREPROCESSING),
        lambda: compose(PREPROCESSING)(strip),
        lambda: compose(PREPROCESSING)(torch.zeros(3, height, width)),
        lambda: ClassificationTask(("a", "b"), PREPROCESSING, crop_scale=1.0).training_transform()(strip, 0),
    ]
    for call in calls:
        with pytest.raises(ImageError) as error:
            call()
        assert str(error.value) == f"the image {problem}"


def test_ordinary_panoramas_are_resized() -> None:
    assert prepare(Image.new("RGB", (1000, 10)), PREPROCESSING).shape == (1, 3, 224, 224)
    assert compose(PREPROCESSING)(Image.new("RGB", (1000, 10))).shape == (3, 224, 224)


class _Strip:
    name = "strip.png"
    label = 0

    def read(self) -> tuple[Image.Image, int]:
        return Image.new("RGB", (60_000, 1)), 0

    def check(self) -> str:
        return ""


def test_a_strip_among_training_images_is_named() -> None:
    task = ClassificationTask(("a", "b"), PREPROCESSING)
    with pytest.raises(DataError) as error:
        next(raise_errors(make_loader(task, [_Strip()], 1, 0, training=False)))
    assert str(error.value) == (
        "'strip.png' cannot be prepared: the image of 60000×1 pixels is too elongated to be resized to a shorter "
        "side of 256; crop it"
    )


def test_only_the_first_of_many_frames_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("L", (4, 4), number % 2 * 255) for number in range(300)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    sought: list[int] = []
    seek = GifImagePlugin.GifImageFile._seek

    def count(image: Any, frame: int, *more: Any) -> Any:
        sought.append(frame)
        return seek(image, frame, *more)

    monkeypatch.setattr(GifImagePlugin.GifImageFile, "_seek", count)
    assert read_image(path).size == (4, 4)
    assert image_problem(str(path)) == ""
    assert set(sought) == {0}


@pytest.mark.parametrize("kind", ["zTXt", "iCCP", "iTXt"])
def test_texts_that_inflate_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    inflating = zlib.compress(b"\0" * 50_000_000, 9)
    before = {"zTXt": b"key\0\0", "iCCP": b"name\0\0", "iTXt": b"key\0\1\0\0\0"}[kind]
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 1, chunk(kind.encode(), before + inflating)))
    tracemalloc.start()
    with pytest.raises(ImageError) as error:
        read_image(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
    assert str(error.value).startswith(f"{str(path)!r} is damaged: ")
    assert "\n" not in str(error.value)
