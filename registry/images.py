"""Reading image files of any kind as plain RGB pictures. No torch."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from featuretap.registry.errors import ImageError

__all__ = ["plain", "read_image"]


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB, turned upright as its EXIF orientation says.

    Raises:
        ImageError: it is missing, empty, truncated, too large, or no image.
    """
    try:
        with Image.open(path) as image:
            return plain(ImageOps.exif_transpose(image), "RGB")
    except UnidentifiedImageError as error:
        problem = "is empty" if path.stat().st_size == 0 else "is no image that Pillow can read"
        raise ImageError(f"{str(path)!r} {problem}; give a JPEG, PNG or other image file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{str(path)!r} is too large to be read safely: {error}") from error
    except (SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as error:
        # What Pillow's readers of single formats let through.
        raise ImageError(f"{str(path)!r} is damaged: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise ImageError(f"cannot read the image {str(path)!r}: {error.strerror}") from error
        raise ImageError(f"{str(path)!r} is damaged: {error}") from error


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
