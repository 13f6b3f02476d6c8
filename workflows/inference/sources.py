"""The images that somebody asks about: files, folders of them, and addresses, read ahead of the model. No torch."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import unquote
from urllib.request import Request, urlopen

from PIL import Image

from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_files import find_images
from featuretap.support.images import decode_image, read_image
from featuretap.support.version import __version__

__all__ = ["ImageSource", "find_sources", "picture_paths", "read_ahead", "read_source"]

LARGEST = 100_000_000
"""Bytes of an image that is downloaded, at most."""

PATIENCE = 30
"""Seconds that a server may be silent."""

READERS = 4
"""Threads that read images; decoding lets go of Python's lock."""


@dataclass(frozen=True)
class ImageSource:
    """An image that is still to be read.

    Args:
        name: what the user called it, or its path below the folder that was given.
        path: of the file, None for an address.
        place: path without an ending for what is made of it, below the folder that was given.
    """

    name: str
    path: Path | None
    place: Path


def find_sources(given: Sequence[str], pictures: Path | None = None) -> list[ImageSource]:
    """Return the images that files, folders and addresses stand for, in their order, those of a folder by path.

    Whether files and addresses are images is seen when they are read.

    Args:
        given: what a user names.
        pictures: folder of what is drawn; where it lies in a folder that is given, what it holds is no image of that.

    Raises:
        DataError: a folder holds no images.
    """
    found: list[ImageSource] = []
    for text in given:
        path = Path(text)
        if text.lower().startswith(("http://", "https://")):
            # Not parsed here: whether it is an address at all is seen when it is asked for.
            stem = PurePosixPath(unquote(re.split("[?#]", text)[0])).stem
            found.append(ImageSource(text, None, Path(stem)))
        elif path.is_dir():
            drawn = pictures.resolve() if pictures and pictures.resolve() != path.resolve() else None
            images = [image for image in find_images(path) if drawn not in image.resolve().parents]
            places = ((image, image.relative_to(path).with_suffix("")) for image in images)
            found += [ImageSource(str(image), image, place) for image, place in places]
        else:
            found.append(ImageSource(text, path, Path(path.stem)))
    return found


def picture_paths(sources: Iterable[ImageSource], folder: Path) -> dict[ImageSource, Path]:
    """Return a file in a folder for each image, numbered where several have the same name.

    Raises:
        DataError: one of them is an image itself.
    """
    paths: dict[ImageSource, Path] = {}
    taken: set[Path] = set()
    for source in dict.fromkeys(sources):
        names = chain((source.place.name,), (f"{source.place.name}-{number}" for number in count(2)))
        free = (folder / source.place.parent / f"{name}.png" for name in names)
        paths[source] = next(path for path in free if path not in taken)
        taken.add(paths[source])
    images = {source.path.resolve() for source in paths if source.path}
    for path in paths.values():
        if path.resolve() in images:
            raise DataError(f"the picture {str(path)!r} would overwrite an image; choose another folder for pictures")
    return paths


def read_source(source: ImageSource) -> Image.Image:
    """Read a file or download an address, as RGB and upright.

    Raises:
        ImageError: it cannot be had, or is no image.
    """
    if source.path is not None:
        return read_image(source.path)
    return decode_image(io.BytesIO(_downloaded(source.name)), source.name)


def read_ahead(sources: Iterable[ImageSource]) -> Iterator[tuple[ImageSource, Image.Image | ImageError]]:
    """Yield images in their order, a few being read in threads meanwhile; in place of one that cannot be, its error."""
    remaining = iter(sources)
    with ThreadPoolExecutor(READERS, "featuretap-images") as pool:
        waiting: deque[tuple[ImageSource, Future[Image.Image | ImageError]]] = deque()
        try:
            while True:
                for source in islice(remaining, 2 * READERS - len(waiting)):
                    waiting.append((source, pool.submit(_read_or_error, source)))
                if not waiting:
                    return
                source, future = waiting.popleft()
                yield source, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _read_or_error(source: ImageSource) -> Image.Image | ImageError:
    try:
        return read_source(source)
    except ImageError as error:
        return error


def _downloaded(address: str) -> bytes:
    from featuretap.weights.downloads import offline

    if offline():
        raise ImageError(f"cannot download {address!r}: FEATURETAP_OFFLINE forbids downloads; give a file")
    try:
        # Some servers answer nobody who does not say who they are.
        request = Request(address, headers={"User-Agent": f"featuretap/{__version__}"})
        with urlopen(request, timeout=PATIENCE) as answer:
            content: bytes = answer.read(LARGEST + 1)
    except HTTPError as error:
        # It is the server's answer too, and holds the connection open.
        error.close()
        raise ImageError(f"cannot download {address!r}: {error.code} {error.reason}") from error
    except URLError as error:
        raise ImageError(
            f"cannot download {address!r}: {getattr(error.reason, 'strerror', None) or error.reason}"
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        raise ImageError(f"cannot download {address!r}: {error or type(error).__name__}") from error
    if len(content) > LARGEST:
        raise ImageError(
            f"{address!r} is larger than {LARGEST // 10**6} MB; download it, and give the file if it is an image"
        )
    return content
