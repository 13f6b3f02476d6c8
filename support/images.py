"""Reading image files of any kind as RGB images, and writing images."""

from __future__ import annotations

import os
import struct
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import Hint, ImageError, WeightsError

SAVE_BITS = "save it with 8 or 16 bits, all images scaled alike"
OVERSHOOT = 0.05
"""Share of the range that floats may lie outside, as resampling makes them."""


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
            upright = apply_orientation(image)
            if image.format in ("PNG", "PPM") and image.mode == "I":
                # Pillow, in some versions, reads 16 bits of these formats as 32.
                upright = upright.convert("I;16")
            return convert_mode(upright, "RGB", repr(name))
    except UnidentifiedImageError as error:
        bits = _bits_of_tiff(file)
        if bits:
            problem = f"is a TIFF file of pixels of {bits} bits, which Pillow cannot read"
            raise ImageError(f"{name!r} {problem}", hint=Hint(SAVE_BITS)) from error
        empty = file.seekable() and file.seek(0, os.SEEK_END) == 0
        problem = "is empty" if empty else "is not an image that Pillow can read"
        raise ImageError(f"{name!r} {problem}", hint=Hint("give a JPEG, PNG or other image file")) from error
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name!r} is too large to be read safely: {error}") from error
    except (SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as error:
        # What Pillow's readers of single formats let through.
        raise ImageError(f"{name!r} is damaged: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise ImageError(f"cannot read the image {name!r}: {error.strerror}") from error
        raise ImageError(f"{name!r} is damaged: {error}") from error


def _bits_of_tiff(file: BinaryIO) -> str:
    """Return the bits of a pixel, "64" or "32+32+32", of a TIFF file that has more than 16 for a channel, or ""."""
    try:
        file.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        bits = directory[TiffImagePlugin.BITSPERSAMPLE]
        return "+".join(map(str, bits)) if max(bits) > 16 else ""
    except Exception:
        # Whatever Pillow raises for a file that is not a TIFF, or that is truncated.
        return ""


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


def convert_mode(image: Image.Image, mode: str, name: str = "the image") -> Image.Image:
    """Convert an image to mode "RGB" or "L".

    Values of 16 bits are scaled, and so are those of 32 bits: floats from 0 to 1 or 255, and integers from 0 to 255, or
    to 65535 where they need all 16 bits. Transparency is composited onto white.

    Raises:
        ImageError: values have another range, as temperatures do; the message calls the image by `name`.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        scaled = np.nan_to_num(values / _range_of(values, image.mode, name) * 255)
        image = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _range_of(values: NDArray[np.float64], mode: str, name: str) -> float:
    """Return the value of white, from the type of an image or the range of its values."""
    if mode.startswith("I;16"):
        return 65535.0
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    beyond = OVERSHOOT if mode == "F" else 0.0
    for white in (255.0, 65535.0) if mode == "I" else (1.0, 255.0):
        # Fewer than 16 bits of an integer, such as Hounsfield units, do not say which value is white.
        full = white < 65535 or most > 32767
        if full and -beyond * most <= least and most <= (1 + beyond) * white:
            return white
    problem = f"{name} has values from {least:g} to {most:g}, and which of them is white is not known"
    raise ImageError(problem, hint=Hint(SAVE_BITS))
