"""Images prepared without PyTorch equal the output of torchvision's transforms bit by bit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image
from support.package import heavy_modules_after

from featuretap.models import transforms
from featuretap.registry.errors import OptionError
from featuretap.runtimes.preparing import normalize, prepare, prepare_for_size
from featuretap.specs.preprocessing import Preprocessing

CLASSIFIER = Preprocessing()
SMALL = replace(CLASSIFIER, resize=40, crop=32)
GREY = SMALL.for_channels(1)
PREPROCESSINGS = {
    "classifier": CLASSIFIER,
    "bicubic": replace(CLASSIFIER, interpolation="bicubic", resize=235),
    "segmenter": replace(CLASSIFIER, resize=120, crop=None),
    "detector": CLASSIFIER.for_images("raw"),
    "crop larger than the resized image": replace(CLASSIFIER, resize=57, crop=80),
    "crop alone": replace(CLASSIFIER, resize=None, crop=63),
    "size as it is": replace(CLASSIFIER, resize=None, crop=None),
    "one channel": CLASSIFIER.for_channels(1),
    "one channel, inside": replace(CLASSIFIER, inside=True).for_channels(1),
}


def noise(width: int, height: int, mode: Literal["L", "RGB"] = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, shape, np.uint8))


def same(prepared: NDArray[np.float32], preprocessing: Preprocessing, image: Image.Image) -> None:
    """Assert that the array equals PyTorch's result and has the memory layout that runtimes expect."""
    assert (prepared.dtype, prepared.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(prepared, transforms.compose(preprocessing)(image)[None].numpy())


@pytest.mark.parametrize("size", [(301, 203), (203, 301), (97, 97), (20, 11), (1, 9), (9, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("preprocessing", PREPROCESSINGS.values(), ids=PREPROCESSINGS)
def test_images_equal_those_that_torchvision_prepares(preprocessing: Preprocessing, size: tuple[int, int]) -> None:
    image = noise(*size)
    same(prepare(image, preprocessing), preprocessing, image)


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.none() | st.integers(1, 70),
    crop=st.none() | st.integers(1, 80),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_images_of_any_size_equal_those_that_torchvision_prepares(
    width: int, height: int, resize: int | None, crop: int | None, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    image, preprocessing = noise(width, height), Preprocessing(resize, crop, interpolation=interpolation)
    same(prepare(image, preprocessing), preprocessing, image)


IMAGES: dict[str, Callable[[], Image.Image]] = {
    "black and white": lambda: noise(53, 41).convert("1"),
    "grey": lambda: noise(53, 41, "L"),
    "grey with alpha": lambda: Image.merge("LA", (noise(53, 41, "L"), noise(53, 41, "L").rotate(180))),
    "alpha": lambda: Image.merge("RGBA", (*noise(53, 41).split(), noise(53, 41, "L"))),
    "palette": lambda: noise(53, 41).quantize(16),
    "16 bits": lambda: Image.fromarray(np.arange(53 * 41, dtype=np.uint16).reshape(41, 53) * 30),
    "32 bits": lambda: Image.fromarray(np.arange(53 * 41, dtype=np.int32).reshape(41, 53) * 30),
    "floats": lambda: Image.fromarray(np.linspace(0, 1, 53 * 41, dtype=np.float32).reshape(41, 53)),
    "CMYK": lambda: noise(53, 41).convert("CMYK"),
    "YCbCr": lambda: noise(53, 41).convert("YCbCr"),
}


@pytest.mark.parametrize("preprocessing", [SMALL, GREY], ids=["three channels", "one channel"])
@pytest.mark.parametrize("create", IMAGES.values(), ids=IMAGES)
def test_images_of_every_mode_are_converted(create: Callable[[], Image.Image], preprocessing: Preprocessing) -> None:
    same(prepare(create(), preprocessing), preprocessing, create())


def test_a_transparent_colour_of_a_palette_becomes_white() -> None:
    image = Image.new("P", (5, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.info["transparency"] = 1
    whole = replace(CLASSIFIER, resize=None, crop=None, inside=True)
    assert (prepare(image, whole) == 1).all()
    same(prepare(image, whole), whole, image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(orientation: int) -> None:
    image = noise(53, 41)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    preprocessing = replace(CLASSIFIER, resize=47, crop=None)
    same(prepare(image, preprocessing), preprocessing, image)
    size = (30, 20)
    expected = transforms.compose_for_size(preprocessing, size)(image)[None].numpy()
    np.testing.assert_array_equal(prepare_for_size(image, preprocessing, size), expected)
    upright = image.size if orientation < 5 else image.size[::-1]
    assert normalize(image, preprocessing).shape == (1, 3, *upright[::-1])


@pytest.mark.parametrize("preprocessing", [SMALL, GREY, PREPROCESSINGS["bicubic"]], ids=["colour", "grey", "bicubic"])
@pytest.mark.parametrize("size", [(64, 96), (17, 5), (41, 53)], ids=str)
def test_images_are_resized_to_a_size(preprocessing: Preprocessing, size: tuple[int, int]) -> None:
    image = noise(53, 41)
    expected = transforms.compose_for_size(preprocessing, size)(image)[None].numpy()
    np.testing.assert_array_equal(prepare_for_size(image, preprocessing, size), expected)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_are_normalised_at_their_own_size(mode: Literal["L", "RGB"], inside: bool) -> None:
    image = noise(53, 41, mode)
    preprocessing = replace(CLASSIFIER, inside=inside).for_channels(len(image.getbands()))
    expected = transforms.normalize(preprocessing)(image)[None].numpy()
    np.testing.assert_array_equal(normalize(image, preprocessing), expected)


@pytest.mark.parametrize(
    "run", [prepare, normalize, lambda image, preprocessing: prepare_for_size(image, preprocessing, (8, 8))]
)
def test_models_of_other_channels_than_a_picture_has_are_refused(
    run: Callable[[Image.Image, Preprocessing], object],
) -> None:
    with pytest.raises(OptionError) as error:
        run(noise(9, 9), CLASSIFIER.for_channels(4))
    message = "the model takes images with 4 channels, but image files have 1 or 3; choose another model"
    assert str(error.value) == message


def test_images_are_prepared_without_pytorch() -> None:
    code = "from featuretap.runtimes.preparing import *; prepare(Image.new('L', (9, 7)), Preprocessing())"
    assert heavy_modules_after(code) == ["PIL", "numpy"]
