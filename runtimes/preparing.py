"""Preprocessing with Pillow and NumPy, equal to that of `models.transforms`: sessions import no PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap.specs.preprocessing import PICTURE_MODES, Preprocessing, check_channels
from featuretap.support.images import apply_orientation, check_ratio, convert_mode


def prepare(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return an image of any mode as a model wants it, equal to that of `models.transforms.compose`.

    Args:
        image: turned upright as its EXIF orientation says, resized and cropped as far as the weights' images were.
        preprocessing: of the weights.

    Returns:
        One image (1, C, H, W).

    Raises:
        OptionError: the model's images have neither one nor three channels.
        ImageError: it is too long a strip to be resized.
    """
    picture = _convert(image, preprocessing)
    if preprocessing.resize is not None:
        check_ratio(*picture.size, preprocessing.resize)
        shorter = min(picture.size)
        # The longer side is rounded down, as by torchvision.
        width, height = (int(preprocessing.resize * side / shorter) for side in picture.size)
        picture = _resize(picture, (height, width), preprocessing)
    if preprocessing.crop is not None:
        left, top = (_crop_offset(side - preprocessing.crop) for side in picture.size)
        # Pillow pads with zeros where the crop is larger than the image, as torchvision does.
        picture = picture.crop((left, top, left + preprocessing.crop, top + preprocessing.crop))
    return _scale(picture, preprocessing)


def prepare_for_size(image: Image.Image, preprocessing: Preprocessing, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return an image that is resized to (height, width) in pixels, without a crop, as (1, C, height, width).

    Raises:
        OptionError: as of `prepare`.
    """
    return _scale(_resize(_convert(image, preprocessing), size, preprocessing), preprocessing)


def normalise(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return an image at its own size, scaled to 0…1, and normalised where the model does not do it, as (1, C, H, W).

    Raises:
        OptionError: as of `prepare`.
    """
    return _scale(_convert(image, preprocessing), preprocessing)


def _convert(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    check_channels(preprocessing)
    return convert_mode(apply_orientation(image), PICTURE_MODES[len(preprocessing.mean)])


def _resize(picture: Image.Image, size: tuple[int, int], preprocessing: Preprocessing) -> Image.Image:
    return picture.resize(size[::-1], Image.Resampling[preprocessing.interpolation.upper()])


def _crop_offset(excess: int) -> int:
    # Half of it, rounded to even, and towards zero where the image is padded, as by torchvision.
    return round(excess / 2) if excess > 0 else int(excess / 2)


def _scale(picture: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    pixels = np.asarray(picture).reshape(1, picture.height, picture.width, -1).transpose(0, 3, 1, 2)
    # Multiplied, not divided by 255, as by torchvision: the last bit differs.
    values: NDArray[np.float32] = np.multiply(pixels, 1 / 255, dtype=np.float32, order="C")
    if not preprocessing.inside:
        mean, std = (np.array(each, np.float32)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
        values -= mean
        values /= std
    return values
