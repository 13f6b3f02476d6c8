"""Reading image files of any kind as plain RGB pictures, and writing pictures. No torch."""

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

__all__ = ["decoded", "plain", "read_image", "upright", "write_picture"]


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB, turned upright as its EXIF orientation says.

    Raises:
        ImageError: it is missing, empty, truncated, too large, or no image.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageError(f"cannot read the image {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise ImageError(f"cannot read the image {str(path)!r}: {error}") from error
    with file:
        return decoded(file, str(path))


def decoded(file: BinaryIO, name: str) -> Image.Image:
    """Return the image in an open file, as `read_image` does.

    Raises:
        ImageError: it is empty, truncated, too large, or no image; the message calls it by `name`.
    """
    try:
        with Image.open(file) as image:
            return plain(upright(image), "RGB")
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


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF orientation says; as it lies, where that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, struct.error):
        return image


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all, in the format that its name ends in.

    Raises:
        ImageError: the name ends in no format of Pillow's that holds it, or the folder or the disk does not take it.
    """
    content = BytesIO()
    # Pillow knows the format by it.
    content.name = path.name
    try:
        picture.save(content)
        replace_files({path: content.getvalue()})
    except (OSError, ValueError, WeightsError) as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        raise ImageError(f"cannot write the picture {str(path)!r}: {reason}") from error


def plain(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in mode "RGB" or "L" as a person would see it.

    16-bit values are scaled rather than clipped, floats are taken as 0 to 1 (or to 255, where they go beyond 1), and
    what is transparent lies on white.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else (1.0 if np.nanmax(values) <= 1 else 255.0)
        image = Image.fromarray((np.nan_to_num(values) / top * 255).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
