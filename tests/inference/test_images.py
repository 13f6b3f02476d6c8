"""Image files of every kind: unusual ones are read, and broken ones are reported by name."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featuretap.registry import Registry
from featuretap.registry.errors import ImageError, OptionError
from featuretap.support.images import convert_mode, read_image
from featuretap.workflows.datasets.data_set import image_problem

RAMP = np.linspace(0, 255, 64 * 48).reshape(48, 64)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


GREY = Image.fromarray(RAMP.astype(np.uint8))
COLOUR = Image.merge("RGB", (GREY, GREY.transpose(Image.Transpose.FLIP_LEFT_RIGHT), GREY))


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: saved(folder / "grey.png", GREY),
        lambda folder: saved(folder / "16bit.png", Image.fromarray((RAMP * 257).astype(np.uint16))),
        lambda folder: saved(folder / "32bit.tif", Image.fromarray((RAMP * 257).astype(np.int32))),
        lambda folder: saved(folder / "float.tif", Image.fromarray((RAMP / 255).astype(np.float32))),
        lambda folder: saved(folder / "float255.tif", Image.fromarray(RAMP.astype(np.float32))),
        lambda folder: saved(folder / "alpha.png", Image.merge("LA", (GREY, Image.new("L", GREY.size, 255)))),
    ],
    ids=["grey", "16-bit", "32-bit", "float to 1", "float to 255", "grey with alpha"],
)
def test_grey_images_of_every_depth_are_the_same_picture(write: Callable[[Path], Path], tmp_path: Path) -> None:
    image = read_image(write(tmp_path))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(GREY)[..., None]).max() <= 1


TEMPERATURES, HOUNSFIELD = (np.float32, 285, 310), (np.int32, -1000, 3000)


@pytest.mark.parametrize(
    ("kind", "least", "most"), [TEMPERATURES, HOUNSFIELD, (np.float32, -1, 1), (np.int32, 0, 4095)]
)
def test_values_whose_white_is_unknown_are_refused(tmp_path: Path, kind: type, least: int, most: int) -> None:
    image = Image.fromarray(np.linspace(least, most, 12).reshape(3, 4).astype(kind))
    path = saved(tmp_path / "values.tif", image)
    problem = f"has values from {least} to {most}, so the value of white is unknown"
    advice = "save all images with 8 or 16 bits and the same scale"
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == f"{str(path)!r} {problem}; {advice}"
    with pytest.raises(ImageError) as error:
        convert_mode(image, "L")
    assert str(error.value) == f"the image {problem}; {advice}"
    assert image_problem(str(path)) == f"{str(path)!r} {problem}"


@pytest.mark.parametrize(("kind", "most", "white"), [(np.float32, 1.02, 255), (np.int32, 200, 200), (np.float32, 0, 0)])
def test_the_range_of_values_says_what_is_white(kind: type, most: float, white: int) -> None:
    values = np.array([[0, most, most]], kind)
    assert np.asarray(convert_mode(Image.fromarray(values), "L")).tolist() == [[0, white, white]]


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_black_or_white() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    assert np.asarray(convert_mode(Image.fromarray(values), "L")).tolist() == [[0, 255, 0, 255]]


def test_dark_images_of_16_bits_stay_dark(tmp_path: Path) -> None:
    path = tmp_path / "dark.pgm"
    path.write_bytes(b"P5 2 1 65535\n\0\0\2\2")
    assert np.asarray(read_image(path)).max() == 2


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_a_tiff_of_64_bits_is_refused_in_one_line(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "deep.tif"
    pixels = np.zeros((2, 2), kind).tobytes()
    sample = {np.float64: 3, np.int64: 2}[kind]
    # Width, height, bits, compression, photometric, offset, samples, bytes, sample format
    tags = [(256, 2), (257, 2), (258, 64), (259, 1), (262, 1), (273, 122), (277, 1), (279, len(pixels)), (339, sample)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + pixels)
    problem = f"{str(path)!r} is a TIFF file with 64 bits per pixel, which Pillow cannot read"
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == f"{problem}; save all images with 8 or 16 bits and the same scale"
    assert image_problem(str(path)) == problem


def test_cmyk_is_converted(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "cmyk.jpg", COLOUR.convert("CMYK"), quality=100))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - np.asarray(COLOUR)).mean() < 3


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (255, 0, 0, 255))
    seen = read_image(saved(tmp_path / "alpha.png", image))
    assert (seen.getpixel((0, 0)), seen.getpixel((1, 1))) == ((255, 255, 255), (255, 0, 0))


def test_palette_images_are_converted(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "palette.gif", Image.new("RGB", (5, 4), (10, 200, 30)).quantize(4)))
    assert image.getpixel((2, 2)) == (10, 200, 30)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(saved(tmp_path / "turned.jpg", COLOUR, exif=exif)).size == (48, 64)


def test_an_image_of_one_pixel_is_read(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path / "pixel.png", Image.new("1", (1, 1), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_colour_can_be_read_as_grey() -> None:
    assert convert_mode(COLOUR, "L").mode == "L"


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        read_image(tmp_path / "absent.png")
    assert str(error.value) == f"cannot read the image '{tmp_path}/absent.png': No such file or directory"


def test_a_path_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ImageError) as error:
        read_image(Path("a\0b.png"))
    assert str(error.value) == "cannot read the image 'a\\x00b.png': embedded null byte"


def test_a_folder_is_refused_as_an_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        read_image(tmp_path)
    assert str(error.value) == f"cannot read the image '{tmp_path}': Is a directory"


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "is empty"), (b"I am a text", "is not an image that Pillow can read")]
)
def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == f"'{path}' {problem}; use a JPEG, PNG or other image file"


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path = saved(tmp_path / f"image.{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ImageError, match=r"'.*' is (damaged: .|not an image that Pillow can read; give)"):
        read_image(path)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((300, 300, 3), np.uint8), "ndarray"),
        (None, "NoneType"),
        (torch.zeros(4, 300, 300), r"a tensor (4, 300, 300)"),
        (torch.zeros(300, 300), r"a tensor (300, 300)"),
    ],
)
def test_input_that_a_model_cannot_use_is_refused(registry: Registry, image: object, found: str) -> None:
    transform = registry.transforms(registry.build("mobilenet_v1_025"))
    with pytest.raises(OptionError) as error:
        transform(image)
    assert str(error.value) == (
        f"the model's images have 3 channels, got {found}; pass a PIL image (of one or three channels), or a tensor "
        "(3, H, W) of bytes or of floats from 0 to 1"
    )
