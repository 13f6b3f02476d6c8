"""Reading image files of any kind as RGB images, and writing images."""

from __future__ import annotations

import os
import struct
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import Hint, ImageError, WeightsError


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB, turned upright as its EXIF orientation says.

    Raises:
        ImageError: it is missing, empty, truncated, too large, or not an image.
    """
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise ImageError(f"cannot read the image {str(path)!r}: {reason}") from error
    with file:
        return decode_image(file, str(path))


def decode_image(file: BinaryIO, name: str) -> Image.Image:
    """Read an image from an open file as `read_image` does.

    Raises:
        ImageError: as of `read_image`, with `name` in the message.
    """
    try:
        with Image.open(file) as image:
            return convert_mode(apply_orientation(image), "RGB")
    except UnidentifiedImageError as error:
        empty = file.seekable() and file.seek(0, os.SEEK_END) == 0
        problem = "is empty" if empty else "is not an image that Pillow can read"
        raise ImageError(f"{name!r} {problem}", hint=Hint("give a JPEG, PNG or other image file")) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name!r} is too large to be read safely: {error}") from error
    except (SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as error:
        # What Pillow's readers of single formats let through.
        raise ImageError(f"{name!r} is damaged: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise ImageError(f"cannot read the image {name!r}: {error.strerror}") from error
        raise ImageError(f"{name!r} is damaged: {error}") from error


def apply_orientation(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF orientation says; unchanged where that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, struct.error):
        return image


def write_picture(picture: Image.Image, path: Path, *, parents: bool = False) -> None:
    """Write an image atomically, in the format of its suffix, and create the folders above it if `parents` is set.

    Raises:
        ImageError: Pillow has no format of this suffix that can store it, or the file cannot be written.
    """
    content = BytesIO()
    # Pillow chooses the format by the name.
    content.name = path.name
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(content)
        replace_files({path: content.getvalue()})
    except (OSError, ValueError, WeightsError) as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        raise ImageError(f"cannot write the picture {str(path)!r}: {reason}") from error


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to mode "RGB" or "L".

    16-bit values are scaled rather than clipped, floats range from 0 to 1 (or to 255, where any exceeds 1), and
    transparency is composited onto white.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else (1.0 if np.nanmax(values) <= 1 else 255.0)
        image = Image.fromarray((np.nan_to_num(values) / top * 255).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
