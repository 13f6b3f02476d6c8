"""Preprocessing as transforms of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from featuretap.specs.preprocessing import PICTURE_MODES, Preprocessing
from featuretap.support.errors import OptionError
from featuretap.support.images import apply_orientation, check_ratio, convert_mode


def compose(preprocessing: Preprocessing) -> Callable[[Any], Any]:
    """Return resizing, center crop and normalization as one transform from an image to a float tensor (C, H, W).

    PIL images of any mode are converted to the channels of the weights and rotated by their EXIF orientation. Tensors
    must already have these channels.

    Args:
        preprocessing: the steps. Steps that are None are left out.

    Returns:
        The transform.

    Raises:
        OptionError: in a call with anything else, such as a NumPy array, whose axis order is ambiguous.
        ImageError: in a call with an image whose aspect ratio is too extreme to resize.
    """
    steps: list[Callable[[Any], Any]] = [_convert(preprocessing)]
    if preprocessing.resize is not None:
        mode = InterpolationMode(preprocessing.interpolation)
        steps += [
            partial(check_strip, shorter=preprocessing.resize),
            v2.Resize(preprocessing.resize, mode, antialias=True),
        ]
    if preprocessing.crop is not None:
        steps.append(v2.CenterCrop(preprocessing.crop))
    return v2.Compose([*steps, normalize(preprocessing)])


def compose_for_size(preprocessing: Preprocessing, size: tuple[int, int]) -> Callable[[Any], Any]:
    """Return the `preprocessing` with a resize to the `size` (height, width) in pixels, and without a crop."""
    resize = v2.Resize(size, InterpolationMode(preprocessing.interpolation), antialias=True)
    return v2.Compose([_convert(preprocessing), resize, normalize(preprocessing)])


def normalize(preprocessing: Preprocessing) -> Callable[[Any], Any]:
    """Return a transform that scales to 0…1, and normalizes unless the model does, from an image to a float tensor (C,
    H, W).

    Args:
        preprocessing: mean and standard deviation.

    Returns:
        The transform.
    """
    steps: list[Callable[[Any], Any]] = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if not preprocessing.inside:
        steps.append(v2.Normalize(list(preprocessing.mean), list(preprocessing.std)))
    return v2.Compose([*steps, v2.ToPureTensor()])


def check_strip(image: Any, shorter: int) -> Any:
    """Return an `image`, or a tensor (…, H, W), if its aspect ratio allows a resize to this `shorter` side. See
    `check_ratio`.
    """
    height, width = v2.functional.get_size(image)
    check_ratio(width, height, shorter)
    return image


def _convert(preprocessing: Preprocessing) -> Callable[[Any], Any]:
    return v2.Lambda(partial(_in_channels, channels=len(preprocessing.mean)))


def _in_channels(image: Any, channels: int) -> Any:
    if isinstance(image, Image.Image) and channels in PICTURE_MODES:
        return convert_mode(apply_orientation(image), PICTURE_MODES[channels])
    if isinstance(image, torch.Tensor) and image.ndim >= 3 and image.shape[-3] == channels:
        return image
    found = f"a tensor {tuple(image.shape)}" if isinstance(image, torch.Tensor) else f"{type(image).__name__}"
    raise OptionError(
        f"the model's images have {channels} channels, got {found}; pass a PIL image (of one or three channels), or a "
        f"tensor ({channels}, H, W) of bytes or of floats from 0 to 1"
    )
