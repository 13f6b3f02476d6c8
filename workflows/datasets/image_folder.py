"""Folders of images for classification, a folder a class. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from featuretap.support.errors import DataError
from featuretap.support.image_files import SUFFIXES, folders_in, images_below, is_image_file
from featuretap.support.images import read_image
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.image_checks import image_problem
from featuretap.workflows.datasets.parts import PartFolders, part_folders
from featuretap.workflows.datasets.splitting import relative_name, split

__all__ = ["ImageFiles", "open_image_folder"]


@dataclass(frozen=True)
class ImageFiles:
    """Image files, and the class of each.

    Args:
        paths: the files.
        labels: place of each file's class in the data set's `classes`.
    """

    paths: tuple[str, ...]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(Path(self.paths[index])), self.labels[index]

    def name(self, index: int) -> str:
        """Return an image's path."""
        return self.paths[index]

    def check(self, index: int) -> str:
        """Return what is wrong with an image, or ""."""
        return image_problem(self.paths[index])


class Part(NamedTuple):
    """A folder of class folders: the images of every class, by its name."""

    folder: Path
    images: dict[str, list[Path]]


def open_image_folder(folder: Path, val_fraction: float, seed: int) -> DataSet:
    """Open a folder of class folders, or one of parts "train" and "val" that are such folders.

    Classes are in the order of their names as text, as torchvision has them; images in folders below a class are of it.

    Raises:
        DataError: there are no images, fewer than two classes, a class folder without images, images beside the class
            folders, or classes to judge by that are not learned.
    """
    parts = part_folders(folder)
    if parts and parts.val is None and not folders_in(parts.train):
        # "train" is a thing to be recognised, beside "bus" and "car".
        parts = None
    train = _read(parts.train if parts else folder)
    if len(train.images) == 1:
        raise DataError(
            f"{str(train.folder)!r} has one class, {next(iter(train.images))!r}; classification needs at least two"
        )
    if parts and parts.val:
        return _given(parts, train, _read(parts.val))
    return _made(train, val_fraction, seed)


def _given(parts: PartFolders, train: Part, val: Part) -> DataSet:
    unknown = [name for name in val.images if name not in train.images]
    if unknown:
        raise DataError(
            f"{str(val.folder)!r} has classes that {str(parts.train)!r} has not: {', '.join(map(repr, unknown))}; "
            "what is to be recognised has to be learned"
        )
    classes = tuple(train.images)
    return DataSet("classification", classes, _files(train, classes), _files(val, classes))


def _made(whole: Part, val_fraction: float, seed: int) -> DataSet:
    files = _files(whole, tuple(whole.images))
    names = [relative_name(path, whole.folder) for path in files.paths]
    train, val = (
        ImageFiles(tuple(files.paths[index] for index in part), [files.labels[index] for index in part])
        for part in split(names, files.labels, val_fraction, seed, str(whole.folder))
    )
    return DataSet("classification", tuple(whole.images), train, val)


def _files(part: Part, classes: Sequence[str]) -> ImageFiles:
    labels = {name: label for label, name in enumerate(classes)}
    found = [(str(path), labels[name]) for name, paths in part.images.items() for path in paths]
    return ImageFiles(tuple(path for path, _ in found), [label for _, label in found])


def _read(folder: Path) -> Part:
    classes = folders_in(folder)
    loose = sorted(path for path in folder.iterdir() if is_image_file(path) and not path.is_dir())
    if not classes:
        there = "holds images but no class folders" if loose else "holds no images"
        raise DataError(f"{str(folder)!r} {there}; sort images into a folder a class, such as {str(folder / 'cat')!r}")
    if loose:
        counted = "1 image lies" if len(loose) == 1 else f"{len(loose)} images lie"
        raise DataError(
            f"{counted} beside the class folders of {str(folder)!r}, {loose[0].name!r} first; move what has a class "
            "into its folder, and the rest out"
        )
    part = Part(folder, {path.name: images_below(path) for path in classes})
    empty = [name for name, images in part.images.items() if not images]
    if len(empty) == len(classes):
        raise DataError(f"{str(folder)!r} holds no images; their names end in {', '.join(sorted(SUFFIXES))}")
    if empty:
        raise DataError(
            f"{str(folder)!r} has class folders without images: {', '.join(map(repr, empty))}; add images, or remove "
            "the folders"
        )
    return part
