"""Find image files in folders and name their results."""

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
"""Lower-case suffixes of image files: Pillow's suffixes for `images.FORMATS`, without float maps (".pfm")."""


SYSTEM_FOLDERS = frozenset({"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found"})
"""Lower-case names of folders that file servers and archives create, with thumbnails and copies of files."""


def is_hidden(name: str) -> bool:
    """Return whether a name starts with "." or belongs to a system folder."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def is_image_file(path: Path) -> bool:
    """Return whether a path has an image suffix and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not is_hidden(path.name)


def find_images(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted by path.

    Hidden files and system folders are skipped. Symbolic links are followed, but each folder is visited only once.

    Args:
        folder: the folder.

    Returns:
        Paths of the images.

    Raises:
        DataError: the folder does not exist or contains no images.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; give a folder of images")
    found = images_below(folder)
    if not found:
        raise DataError(f"{str(folder)!r} contains no images; supported suffixes are {', '.join(sorted(SUFFIXES))}")
    return found


def images_below(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted by path; empty if there are none."""
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        # A link to a parent folder would loop forever.
        folders[:] = [] if real in seen else sorted(name for name in folders if not is_hidden(name))
        if real not in seen:
            found += [path for path in (Path(root, name) for name in files) if is_image_file(path)]
        seen.add(real)
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise error


def folders_in(folder: Path) -> list[Path]:
    """Return the subfolders that are not hidden, sorted as text ("10" before "9")."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def child(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder. If the exact name does not exist, ignore the case."""
    exact = folder / name
    if exact.exists() or not folder.is_dir():
        return exact
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() == name.lower()), exact)


class ImageFile(NamedTuple):
    """An image file.

    Args:
        name: name of the image in results, with forward slashes.
        path: absolute path.
    """

    name: str
    path: str

    @property
    def text(self) -> str:
        """The name with non-UTF-8 bytes escaped."""
        return self.name.encode("utf-8", "backslashreplace").decode()


def list_images(sources: Sequence[Path]) -> tuple[ImageFile, ...]:
    """Return the images in folders and files, sorted by path, without duplicates.

    If the only source is a folder, images are named by their path within it. With several sources, names start with the
    source, since two folders may contain the same name.

    Args:
        sources: folders and image files.

    Returns:
        The images.

    Raises:
        DataError: a source does not exist, or a folder contains no images.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        # Path.is_dir raises an error for names that are too long; os.path.isdir returns False.
        if os.path.isdir(source):
            for path in find_images(source):
                found[path.relative_to(source) if len(sources) == 1 else path] = path.absolute()
        elif os.path.exists(source):
            found[source] = source.absolute()
        else:
            raise DataError(f"there is no folder or image {str(source)!r}; give folders of images, or image files")
    return tuple(ImageFile(name.as_posix(), str(path)) for name, path in sorted(found.items()))


def digest_of(images: Iterable[ImageFile]) -> str:
    """Return the SHA-256 of the names and file sizes of images, as hexadecimal digits.

    Modification times are not included, since copying a folder changes them.

    Args:
        images: the images.

    Returns:
        The digest.
    """
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.text}\0{_size(Path(image.path))}\n".encode())
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # The error is reported when the image is read.
        return -1
