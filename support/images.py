"""Read image files as RGB images, and write images."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from math import inf
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import FeaturetapError, Hint, ImageError, OptionError, WeightsError
from featuretap.support.regular_files import open_regular

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""Pillow's names of the supported formats; "JPEG" includes MPO. Pillow would execute PostScript files as programs."""

FORMAT_NAMES = "a JPEG, PNG, GIF, BMP, PPM, TIFF, WebP, AVIF or JPEG 2000 file"

OTHER_FORMATS = (
    (0, (b"%!PS", b"\xc5\xd0\xd3\xc6"), "a PostScript program"),
    (0, (b"%PDF",), "a PDF document"),
    (0, (b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg"), "an SVG or other XML document"),
    (0, (b"<!DOCTYPE html", b"<!doctype html", b"<html"), "an HTML page"),
    (4, (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"), "a HEIC image"),
    (0, (b"8BPS",), "a Photoshop image"),
    (0, (b"icns",), "an ICNS icon"),
    (0, (b"\0\0\1\0", b"\0\0\2\0"), "an icon or cursor of Windows"),
    (0, (b"\xd7\xcd\xc6\x9a", b"\1\0\0\0"), "a Windows metafile"),
    (0, (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",), "an OLE file, such as FlashPix"),
    (0, (b"\x89HDF\r\n\x1a\n",), "an HDF5 file"),
    (128, (b"DICM",), "a DICOM file"),
    (0, (b"SIMPLE  =",), "a FITS image"),
    (0, (b"GRIB",), "a GRIB file"),
    (0, (b"BUFR",), "a BUFR file"),
    (0, (b"DDS ",), "a DDS texture"),
    (0, (b"qoif",), "a QOI image"),
    (0, (b"\x76\x2f\x31\x01",), "an OpenEXR image"),
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL image"),
)
"""Offset, magic numbers and description of unsupported formats."""

ORIENTATION = 0x0112

DEFAULT_PIXELS = 2**30 // 12
"""Pillow's default MAX_IMAGE_PIXELS."""

LARGE = 2**24
"""Number of pixels above which images are decoded one at a time, since each takes several 100 MB."""

MAXIMUM_RESIZED = 2**26
"""Maximum number of pixels after resizing. Otherwise a strip of one pixel's height would exhaust the memory."""

BLOCK = 2**20
"""Number of pixel values that are scaled at a time."""

SAVE_BITS = "save all images with 8 or 16 bits and the same scale"
OVERSHOOT = 0.05
"""Fraction of the range by which float values may exceed it, as after resampling."""


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB and apply its EXIF orientation.

    Args:
        path: path of the file.

    Returns:
        The image.

    Raises:
        ImageError: the file is not a readable image; see `open_image`.
    """
    return decode_image(path, str(path))


def decode_image(source: Path | BinaryIO, name: str) -> Image.Image:
    """Read an image from a path or an open file, as `read_image` does.

    Args:
        source: the path or open file.
        name: name of the image in messages.

    Returns:
        The image.

    Raises:
        ImageError: the file is not a readable image; see `open_image`.
    """
    with open_image(source, name) as image:
        upright = apply_orientation(image)
        if image.format in ("PNG", "PPM") and image.mode == "I":
            # Some versions of Pillow read 16-bit images of these formats as 32-bit.
            upright = upright.convert("I;16")
        return convert_mode(upright, "RGB", repr(name))


@contextmanager
def open_image(source: Path | BinaryIO, name: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image without decoding it. Only the first frame is ever decoded.

    Large images are locked: other threads wait until this one is closed. Pillow's errors are converted to an
    `ImageError`.

    Args:
        source: the path or open file.
        name: name of the image in messages.

    Yields:
        ImageFile.ImageFile: the image.

    Raises:
        ImageError: the file is missing, empty, truncated, not a regular file, not in one of `FORMATS`, or has more
            pixels than `pixel_limit()`.
        OptionError: FEATURETAP_MAX_PIXELS is invalid.
    """
    with _open_file(source) if isinstance(source, Path) else nullcontext(source) as file:
        limit = pixel_limit()
        try:
            image = _identify(file)
            if image is None:
                raise _unreadable(file, name)
            if image.width * image.height > limit:
                problem = f"{name!r} of {image.width}×{image.height} pixels exceeds FEATURETAP_MAX_PIXELS={limit}"
                raise ImageError(problem, hint=Hint("set it higher to read larger images"))
            with _large_image if is_large(image) else nullcontext():
                yield image
        except FeaturetapError:
            raise
        except MemoryError as error:
            raise ImageError(f"{name!r} does not fit into memory") from error
        except OSError as error:
            if error.errno is not None:
                raise ImageError(f"cannot read the image {name!r}: {error.strerror}") from error
            raise ImageError(f"{name!r} is damaged: {error}") from error
        except Exception as error:
            # Pillow's format readers may raise any exception on corrupt files.
            raise ImageError(f"{name!r} is damaged: {error}") from error


def is_large(image: Image.Image) -> bool:
    """Return whether an image has so many pixels that only one such image is decoded at a time."""
    return image.width * image.height > LARGE


def check_ratio(width: int, height: int, shorter: int | None, name: str = "the image", advice: str = "crop it") -> None:
    """Check that resizing an image to a shorter side does not create a huge image.

    Args:
        width: width of the image.
        height: height of the image.
        shorter: target length of the shorter side, or None.
        name: name of the image in the message.
        advice: hint of the message.

    Raises:
        ImageError: the resized image would have more than `MAXIMUM_RESIZED` pixels.
    """
    if shorter is not None and shorter**2 * max(width, height) > MAXIMUM_RESIZED * min(width, height):
        raise ImageError(
            f"{name} of {width}×{height} pixels is too elongated to be resized to a shorter side of {shorter}",
            hint=Hint(advice),
        )


def pixel_limit() -> float:
    """Return the maximum number of pixels of an image: FEATURETAP_MAX_PIXELS, or Pillow's MAX_IMAGE_PIXELS.

    Returns:
        The limit, which may be infinite.

    Raises:
        OptionError: FEATURETAP_MAX_PIXELS is not a positive integer.
    """
    stated = os.environ.get("FEATURETAP_MAX_PIXELS", "")
    if not stated:
        return inf if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS
    if not re.fullmatch(r"[1-9][0-9]{0,17}", stated):
        hint = Hint("use a number such as 200000000")
        raise OptionError(f"FEATURETAP_MAX_PIXELS must be a positive integer, got {stated!r}", hint=hint)
    if Image.MAX_IMAGE_PIXELS is not None:
        # Pillow also checks crops of an image against its own limit.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(stated))
    return int(stated)


def _renew_lock() -> None:
    global _large_image
    _large_image = RLock()


_large_image = RLock()
if hasattr(os, "register_at_fork"):
    # In a forked process, the thread that holds the lock does not exist.
    os.register_at_fork(after_in_child=_renew_lock)


def _open_file(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise ImageError(f"cannot read the image {str(path)!r}: {reason}") from error


def _identify(file: BinaryIO) -> ImageFile.ImageFile | None:
    """Return an image of one of `FORMATS` with its header read, or None.

    `Image.open` would check the size against Pillow's limit and warn about images that featuretap rejects with its own
    message.
    """
    Image.preinit()
    prefix = file.read(16)
    for name in FORMATS:
        if name not in Image.OPEN:
            # Pillow imports most format plugins on demand.
            Image.init()
        factory, accept = Image.OPEN.get(name, (None, None))
        accepted = accept(prefix) if accept else False
        # `accept` returns a string if Pillow was built without this format.
        if factory and accepted and not isinstance(accepted, str):
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(file, "")
    return None


def _unreadable(file: BinaryIO, name: str) -> ImageError:
    """Return the error for a file that is not an image in one of `FORMATS`."""
    bits = _bits_of_tiff(file)
    if bits:
        problem = f"{name!r} is a TIFF file with {bits} bits per pixel, which Pillow cannot read"
        return ImageError(problem, hint=Hint(SAVE_BITS))
    file.seek(0)
    beginning = file.read(256)
    kind = next((kind for place, signs, kind in OTHER_FORMATS if beginning.lstrip()[place:].startswith(signs)), "")
    if kind:
        return ImageError(f"{name!r} is {kind}, which is not supported", hint=Hint(f"use {FORMAT_NAMES}"))
    problem = "is not an image that Pillow can read" if beginning else "is empty"
    return ImageError(f"{name!r} {problem}", hint=Hint("use a JPEG, PNG or other image file"))


def _bits_of_tiff(file: BinaryIO) -> str:
    """Return the bits per pixel of a TIFF file with more than 16 per channel, such as "32+32+32", else ""."""
    try:
        file.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        bits = directory[TiffImagePlugin.BITSPERSAMPLE]
        return "+".join(map(str, bits)) if max(bits) > 16 else ""
    except Exception:
        # Pillow may raise any exception if the file is truncated or not a TIFF.
        return ""


def apply_orientation(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of an image. Images without one, or with an invalid one, are returned unchanged."""
    try:
        # Pillow would copy upright images too, which may be large.
        return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
    except (SyntaxError, ValueError, struct.error):
        return image


def write_picture(picture: Image.Image, path: Path, *, parents: bool = False) -> None:
    """Write an image atomically, in the format of its suffix.

    Args:
        picture: the image.
        path: path of the file.
        parents: whether to create missing parent folders.

    Raises:
        ImageError: the suffix is not a format that can store the image, or the file cannot be written.
    """
    content = BytesIO()
    # Pillow selects the format by the suffix.
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

    16-bit values are scaled to 8 bits. 32-bit floats must range from 0 to 1 or 255, and 32-bit integers from 0 to 255
    or, if they use all 16 bits, 65535. Transparent images are composited onto white.

    Args:
        image: an image of any mode.
        mode: "RGB" or "L".
        name: name of the image in the message.

    Returns:
        The converted image.

    Raises:
        ImageError: the values have another range, such as temperatures.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        white = _range_of(values, image.mode, name)
        scaled = np.empty(values.shape, np.uint8)
        rows = max(1, BLOCK // max(1, image.width))
        for start in range(0, image.height, rows):
            block = values[start : start + rows].astype(np.float64)
            scaled[start : start + rows] = np.nan_to_num(block / white * 255).clip(0, 255).round()
        image = Image.fromarray(scaled)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _range_of(values: NDArray[Any], mode: str, name: str) -> float:
    """Return the value of white, from the mode of an image or the range of its values."""
    if mode.startswith("I;16"):
        return 65535.0
    finite = values[np.isfinite(values)] if mode == "F" else values
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    beyond = OVERSHOOT if mode == "F" else 0.0
    for white in (255.0, 65535.0) if mode == "I" else (1.0, 255.0):
        # With fewer than 16 bits used, as by Hounsfield units, the value of white is unknown.
        full = white < 65535 or most > 32767
        if full and -beyond * most <= least and most <= (1 + beyond) * white:
            return white
    problem = f"{name} has values from {least:g} to {most:g}, so the value of white is unknown"
    raise ImageError(problem, hint=Hint(SAVE_BITS))
