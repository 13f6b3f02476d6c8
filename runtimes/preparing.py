"""Preprocessing with Pillow and NumPy, without PyTorch. The results equal those of `models.transforms`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap.specs.preprocessing import PICTURE_MODES, Preprocessing, check_channels
from featuretap.support.images import apply_orientation, check_ratio, convert_mode


def prepare(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Preprocess an image as `models.transforms.compose` does.

    Args:
        image: an image of any mode. Its EXIF orientation is applied.
        preprocessing: the checkpoint's preprocessing.

    Returns:
        A batch of one image (1, C, H, W).

    Raises:
        OptionError: the model takes neither one nor three channels.
        ImageError: the image is too elongated to be resized.
    """
    picture = _convert(image, preprocessing)
    if preprocessing.resize is not None:
        check_ratio(*picture.size, preprocessing.resize)
        shorter = min(picture.size)
        # torchvision rounds the longer side down.
        width, height = (int(preprocessing.resize * side / shorter) for side in picture.size)
        picture = _resize(picture, (height, width), preprocessing)
    if preprocessing.crop is not None:
        left, top = (_crop_offset(side - preprocessing.crop) for side in picture.size)
        # Like torchvision, Pillow pads with zeros if the crop is larger than the image.
        picture = picture.crop((left, top, left + preprocessing.crop, top + preprocessing.crop))
    return _scale(picture, preprocessing)


def prepare_for_size(image: Image.Image, preprocessing: Preprocessing, size: tuple[int, int]) -> NDArray[np.float32]:
    """Preprocess an image with a fixed size and no crop.

    Args:
        image: an image of any mode. Its EXIF orientation is applied.
        preprocessing: the checkpoint's preprocessing.
        size: (height, width) in pixels.

    Returns:
        A batch of one image (1, C, height, width).

    Raises:
        OptionError: the model takes neither one nor three channels.
    """
    return _scale(_resize(_convert(image, preprocessing), size, preprocessing), preprocessing)


def normalize(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Scale an image to 0…1 at its original size, and normalize it unless the model does so itself.

    Args:
        image: an image of any mode. Its EXIF orientation is applied.
        preprocessing: the checkpoint's preprocessing.

    Returns:
        A batch of one image (1, C, H, W).

    Raises:
        OptionError: the model takes neither one nor three channels.
    """
    return _scale(_convert(image, preprocessing), preprocessing)


def _convert(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    check_channels(preprocessing)
    return convert_mode(apply_orientation(image), PICTURE_MODES[len(preprocessing.mean)])


def _resize(picture: Image.Image, size: tuple[int, int], preprocessing: Preprocessing) -> Image.Image:
    return picture.resize(size[::-1], Image.Resampling[preprocessing.interpolation.upper()])


def _crop_offset(excess: int) -> int:
    # torchvision rounds half the excess to even if it crops, and toward zero if it pads.
    return round(excess / 2) if excess > 0 else int(excess / 2)


def _scale(picture: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    pixels = np.asarray(picture).reshape(1, picture.height, picture.width, -1).transpose(0, 3, 1, 2)
    # torchvision multiplies by 1 / 255. Division would differ in the last bit.
    values: NDArray[np.float32] = np.multiply(pixels, 1 / 255, dtype=np.float32, order="C")
    if not preprocessing.inside:
        mean, std = (np.array(each, np.float32)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
        values -= mean
        values /= std
    return values
