"""Images to predict: files, folders and URLs, which are read ahead, and the paths of their pictures."""

import io
import os
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote

from PIL import Image

from featuretap.support.downloading import TooLargeError, download
from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_files import find_images
from featuretap.support.images import decode_image, is_large, open_image
from featuretap.support.text import one_line
from featuretap.support.threads import map_ahead

MAXIMUM_BYTES = 100_000_000
"""Maximum size of a downloaded image."""

READERS = 4
"""Number of threads that read images. Decoding releases the GIL."""


@dataclass(frozen=True)
class ImageSource:
    """An image to read.

    Args:
        name: name of the image in messages.
        path: path of the file, or None for a URL.
        place: path of its picture, without a suffix, relative to the output folder.
    """

    name: str
    path: Path | None
    place: Path


def find_sources(given: Sequence[str], pictures: Path | None = None) -> list[ImageSource]:
    """Return the images in files, folders and URLs, in the given order. The images of a folder are sorted by path.

    Files and URLs are only checked when they are read.

    Args:
        given: files, folders and URLs.
        pictures: folder of drawn pictures, whose files are skipped if it is inside a given folder.

    Returns:
        The images.
    """
    found: list[ImageSource] = []
    for text in given:
        path = Path(text)
        if text.lower().startswith(("http://", "https://")):
            # Invalid URLs are reported when the image is read.
            stem = one_line(PurePosixPath(unquote(re.split("[?#]", text)[0])).stem)
            found.append(ImageSource(text, None, Path(stem)))
        elif os.path.isdir(path):
            drawn = _resolve(pictures) if pictures and _resolve(pictures) != _resolve(path) else None
            images = [image for image in find_images(path) if drawn not in _resolve(image).parents]
            places = ((image, image.relative_to(path).with_suffix("")) for image in images)
            found += [ImageSource(str(image), image, place) for image, place in places]
        else:
            found.append(ImageSource(text, path, Path(path.stem)))
    return found


def picture_paths(sources: Iterable[ImageSource], folder: Path) -> dict[ImageSource, Path]:
    """Choose the path of each image's picture. Pictures of the same name are numbered.

    Args:
        sources: the images.
        folder: output folder.

    Returns:
        Image → path of its picture.

    Raises:
        DataError: a picture would overwrite an image.
    """
    paths: dict[ImageSource, Path] = {}
    taken: set[Path] = set()
    for source in dict.fromkeys(sources):
        names = chain((source.place.name,), (f"{source.place.name}-{number}" for number in count(2)))
        free = (folder / source.place.parent / f"{name}.png" for name in names)
        paths[source] = next(path for path in free if path not in taken)
        taken.add(paths[source])
    images = {_resolve(source.path) for source in paths if source.path}
    for path in paths.values():
        if _resolve(path) in images:
            raise DataError(f"the picture {str(path)!r} would overwrite an image; choose another folder for pictures")
    return paths


def _resolve(path: Path) -> Path:
    # Path.resolve raises an error for symbolic links that form a loop.
    return Path(os.path.realpath(path))


def read_source(source: ImageSource) -> Image.Image:
    """Read a file or download a URL, and return the image as RGB and upright."""
    return decode_image(_content_of(source), source.name)


def read_ahead(sources: Iterable[ImageSource]) -> Generator[tuple[ImageSource, Image.Image | ImageError], None, None]:
    """Yield images in order while threads read the next ones.

    Large images are decoded one at a time, since several of them would exhaust the memory.

    Args:
        sources: the images.

    Yields:
        tuple[ImageSource, Image.Image | ImageError]: each image, or the error of reading it.
    """
    with closing(map_ahead(lambda source: (source, _read_unless_large(source)), sources, READERS)) as read:
        for source, image in read:
            yield source, _read_or_error(*image) if isinstance(image, tuple) else image


Content = Path | BinaryIO
"""Path of an image, or its bytes."""


def _content_of(source: ImageSource) -> Content:
    return source.path or io.BytesIO(_download(source.name))


def _read_unless_large(source: ImageSource) -> Image.Image | ImageError | tuple[Content, str]:
    """Return an image, the error of reading it, or the content of a large image that is not decoded yet."""
    try:
        content = _content_of(source)
        with open_image(content, source.name) as image:
            if is_large(image):
                return content, source.name
    except ImageError as error:
        return error
    return _read_or_error(content, source.name)


def _read_or_error(content: Content, name: str) -> Image.Image | ImageError:
    try:
        return decode_image(content, name)
    except ImageError as error:
        return error


def _download(address: str) -> bytes:
    # Importing the HTTP modules takes 5 % of the time of predicting a file.
    from http.client import HTTPException
    from urllib.error import HTTPError

    from featuretap.weights.downloads import offline

    if offline():
        raise ImageError(f"cannot download {address!r}: FEATURETAP_OFFLINE forbids downloads; use a local file")
    try:
        return download(address, MAXIMUM_BYTES)
    except TooLargeError as error:
        raise ImageError(
            f"{address!r} is larger than {MAXIMUM_BYTES // 10**6} MB; download it yourself and use the local file"
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        if isinstance(error, HTTPError):
            # The error is also the response, which holds the connection open.
            error.close()
            reason = f"{error.code} {error.reason}"
        raise ImageError(f"cannot download {address!r}: {reason}") from error
