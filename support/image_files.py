"""Finding image files in folders, and the names under which their results are stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from featuretap.support.errors import DataError

SUFFIXES = frozenset(
    {
        *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
        *(".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    }
)
"""Endings of the names of image files, in lower case: Pillow's for `images.FORMATS`, without float maps (".pfm")."""


SYSTEM_FOLDERS = frozenset({"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found"})
"""Names, in lower case, of folders that file servers and archives add, with thumbnails and copies in them."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is not a user's own: its name begins with ".", or the system made it."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def is_image_file(path: Path) -> bool:
    """Return whether a name is that of an image file that is not hidden."""
    return path.suffix.lower() in SUFFIXES and not is_hidden(path.name)


def find_images(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted by path.

    Files and folders that are hidden or the system's are skipped; symbolic links are followed, each folder once.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; give a folder of images")
    found = images_below(folder)
    if not found:
        raise DataError(f"{str(folder)!r} holds no images; their names end in {', '.join(sorted(SUFFIXES))}")
    return found


def images_below(folder: Path) -> list[Path]:
    """Return what `find_images` returns, or an empty list."""
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        # A link to a folder above would loop forever.
        folders[:] = [] if real in seen else sorted(name for name in folders if not is_hidden(name))
        if real not in seen:
            found += [path for path in (Path(root, name) for name in files) if is_image_file(path)]
        seen.add(real)
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise error


def folders_in(folder: Path) -> list[Path]:
    """Return the direct subfolders that are not hidden, sorted by name as text ("10" before "9")."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def child(folder: Path, name: str) -> Path:
    """Return the path of a name in a folder, in the case that it has there if not in this one."""
    exact = folder / name
    if exact.exists() or not folder.is_dir():
        return exact
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() == name.lower()), exact)


class ImageFile(NamedTuple):
    """An image: the name of its row, with slashes, and its absolute path."""

    name: str
    path: str

    @property
    def text(self) -> str:
        """Its name, with bytes that are not UTF-8 escaped."""
        return self.name.encode("utf-8", "backslashreplace").decode()


def list_images(sources: Sequence[Path]) -> tuple[ImageFile, ...]:
    """Return the images of folders and files, sorted by path, without duplicates.

    Images of a single folder are named by their paths within it. With several sources each name begins with its source
    as it was given, because two folders may have an image of the same name.

    Raises:
        DataError: a source does not exist, or a folder holds no images.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        # Unlike those of a path, these functions accept names that are longer than any file's.
        if os.path.isdir(source):
            for path in find_images(source):
                found[path.relative_to(source) if len(sources) == 1 else path] = path.absolute()
        elif os.path.exists(source):
            found[source] = source.absolute()
        else:
            raise DataError(f"there is no folder or image {str(source)!r}; give folders of images, or image files")
    return tuple(ImageFile(name.as_posix(), str(path)) for name, path in sorted(found.items()))


def digest_of(images: Iterable[ImageFile]) -> str:
    """Return the SHA-256 of the names and sizes in bytes of images, in hexadecimal digits.

    Times are left out, because copying a folder changes them.
    """
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.text}\0{_size(Path(image.path))}\n".encode())
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # It will be reported when it is read.
        return -1
