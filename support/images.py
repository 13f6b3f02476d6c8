"""Reading image files of any kind as RGB images, and writing images."""

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
"""Pillow's names of the formats that are read; "JPEG" includes MPO. Pillow would have PostScript run as a program."""

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
"""Where and how files of formats that are not read begin, and what they are."""

ORIENTATION = 0x0112

DEFAULT_PIXELS = 2**30 // 12
"""Pillow's MAX_IMAGE_PIXELS as it comes."""

LARGE = 2**24
"""Pixels of an image beyond which only one is decoded at a time: with its copies it takes several 100 MB."""

MAXIMUM_RESIZED = 2**26
"""Pixels of an image after resizing: a strip of one pixel's height would otherwise fill the memory."""

BLOCK = 2**20
"""Values of an image that are scaled at a time."""

SAVE_BITS = "save it with 8 or 16 bits, all images scaled alike"
OVERSHOOT = 0.05
"""Share of the range that floats may lie outside, as resampling makes them."""


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB, turned upright as its EXIF orientation says.

    Raises:
        ImageError: as of `open_image`.
    """
    return decode_image(path, str(path))


def decode_image(source: Path | BinaryIO, name: str) -> Image.Image:
    """Read an image from a file or its path as `read_image` does.

    Raises:
        ImageError: as of `open_image`.
    """
    with open_image(source, name) as image:
        upright = apply_orientation(image)
        if image.format in ("PNG", "PPM") and image.mode == "I":
            # Pillow, in some versions, reads 16 bits of these formats as 32.
            upright = upright.convert("I;16")
        return convert_mode(upright, "RGB", repr(name))


@contextmanager
def open_image(source: Path | BinaryIO, name: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image of one of `FORMATS`, without decoding it; only the first of several frames is ever decoded.

    Other readers of large images wait until this one is closed. What Pillow raises inside is raised as an `ImageError`.

    Args:
        source: the path, or an open file.
        name: of the image in messages.

    Raises:
        ImageError: it is missing, no regular file, empty, truncated, of more pixels than `pixel_limit()`, of another
            format, or not an image.
        OptionError: as of `pixel_limit`.
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
            raise ImageError(f"{name!r} does not fit into the memory") from error
        except OSError as error:
            if error.errno is not None:
                raise ImageError(f"cannot read the image {name!r}: {error.strerror}") from error
            raise ImageError(f"{name!r} is damaged: {error}") from error
        except Exception as error:
            # Whatever Pillow's readers of single formats let through.
            raise ImageError(f"{name!r} is damaged: {error}") from error


def is_large(image: Image.Image) -> bool:
    """Return whether an image has so many pixels that only one of its kind is decoded at a time."""
    return image.width * image.height > LARGE


def check_ratio(width: int, height: int, shorter: int | None, name: str = "the image", advice: str = "crop it") -> None:
    """Refuse a strip whose shorter side cannot be resized to a number of pixels without filling the memory.

    Raises:
        ImageError: the image would have more than `MAXIMUM_RESIZED` pixels; the message calls it by `name`.
    """
    if shorter is not None and shorter**2 * max(width, height) > MAXIMUM_RESIZED * min(width, height):
        raise ImageError(
            f"{name} of {width}×{height} pixels is too long a strip to be resized to a shorter side of {shorter}",
            hint=Hint(advice),
        )


def pixel_limit() -> float:
    """Return the most pixels of an image that is read: FEATURETAP_MAX_PIXELS, or else Pillow's MAX_IMAGE_PIXELS.

    Raises:
        OptionError: FEATURETAP_MAX_PIXELS is not a number.
    """
    stated = os.environ.get("FEATURETAP_MAX_PIXELS", "")
    if not stated:
        return inf if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS
    if not re.fullmatch(r"[1-9][0-9]{0,17}", stated):
        hint = Hint("give a whole number, such as 200000000")
        raise OptionError(f"FEATURETAP_MAX_PIXELS is {stated!r}, which is not a number of pixels", hint=hint)
    if Image.MAX_IMAGE_PIXELS is not None:
        # Pillow compares crops of an image with its own limit.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(stated))
    return int(stated)


def _renew_lock() -> None:
    global _large_image
    _large_image = RLock()


_large_image = RLock()
if hasattr(os, "register_at_fork"):
    # The thread that holds it does not exist in a forked process.
    os.register_at_fork(after_in_child=_renew_lock)


def _open_file(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise ImageError(f"cannot read the image {str(path)!r}: {reason}") from error


def _identify(file: BinaryIO) -> ImageFile.ImageFile | None:
    """Return an image of one of `FORMATS` whose header is read, or None.

    `Image.open` would compare sizes with Pillow's limit, and warn of images that are refused with an explanation here.
    """
    Image.preinit()
    prefix = file.read(16)
    for name in FORMATS:
        if name not in Image.OPEN:
            # Pillow imports most formats only when they are needed.
            Image.init()
        factory, accept = Image.OPEN.get(name, (None, None))
        accepted = accept(prefix) if accept else False
        # A text in place of True says that Pillow was built without this format.
        if factory and accepted and not isinstance(accepted, str):
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(file, "")
    return None


def _unreadable(file: BinaryIO, name: str) -> ImageError:
    """Return the error of a file that is not an image of one of `FORMATS`."""
    bits = _bits_of_tiff(file)
    if bits:
        problem = f"{name!r} is a TIFF file of pixels of {bits} bits, which Pillow cannot read"
        return ImageError(problem, hint=Hint(SAVE_BITS))
    file.seek(0)
    beginning = file.read(256)
    kind = next((kind for place, signs, kind in OTHER_FORMATS if beginning.lstrip()[place:].startswith(signs)), "")
    if kind:
        return ImageError(f"{name!r} is {kind}, which is not read as an image", hint=Hint(f"give {FORMAT_NAMES}"))
    problem = "is not an image that Pillow can read" if beginning else "is empty"
    return ImageError(f"{name!r} {problem}", hint=Hint("give a JPEG, PNG or other image file"))


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
    """Return an image turned as its EXIF orientation says; the same where it is upright, or that cannot be read."""
    try:
        # Pillow copies upright images, too, and they may be large.
        return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
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
    """Return the value of white, from the type of an image or the range of its values."""
    if mode.startswith("I;16"):
        return 65535.0
    finite = values[np.isfinite(values)] if mode == "F" else values
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    beyond = OVERSHOOT if mode == "F" else 0.0
    for white in (255.0, 65535.0) if mode == "I" else (1.0, 255.0):
        # Fewer than 16 bits of an integer, such as Hounsfield units, do not say which value is white.
        full = white < 65535 or most > 32767
        if full and -beyond * most <= least and most <= (1 + beyond) * white:
            return white
    problem = f"{name} has values from {least:g} to {most:g}, and which of them is white is not known"
    raise ImageError(problem, hint=Hint(SAVE_BITS))
