"""Which images are meant by folders and files, and by what names their rows are known. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from featuretap.support.errors import DataError
from featuretap.support.image_files import find_images

__all__ = ["ImageFile", "digest_of", "list_images"]


class ImageFile(NamedTuple):
    """An image: the name that its row bears, with slashes, and its absolute path."""

    name: str
    path: str

    @property
    def is_text(self) -> bool:
        """Whether its name can be written into a file; Linux allows names that are no UTF-8."""
        return self.text == self.name

    @property
    def text(self) -> str:
        """Its name, with what is no UTF-8 escaped."""
        return self.name.encode("utf-8", "backslashreplace").decode()


def list_images(sources: Sequence[Path]) -> tuple[ImageFile, ...]:
    """Return the images of folders and files, sorted by path; what is named twice is there once.

    Images of a single folder are named by their paths within it, so that the rows mean the same wherever the folder
    lies. With several sources each name begins with its source as it was given, because two folders may have an image
    of the same name.

    Raises:
        DataError: a source does not exist, or a folder holds no images.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        if source.is_file():
            found[source] = source.absolute()
            continue
        if not source.exists():
            raise DataError(f"there is no folder or image {str(source)!r}; give folders of images, or image files")
        for path in find_images(source):
            found[path.relative_to(source) if len(sources) == 1 else path] = path.absolute()
    return tuple(ImageFile(name.as_posix(), str(path)) for name, path in sorted(found.items()))


def digest_of(images: Iterable[ImageFile]) -> str:
    """Return the SHA-256 of the names and sizes in bytes of images, in hexadecimal digits.

    Another list, or a file that was replaced by one of another size, gives another digest. Times are left out, because
    copying a folder changes them.
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
