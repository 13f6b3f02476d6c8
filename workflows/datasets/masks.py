"""Folders of images with a mask for each, for segmentation. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap.support.errors import DataError
from featuretap.support.image_files import images_below
from featuretap.support.images import read_image
from featuretap.workflows.datasets.data_set import IGNORED, DataSet
from featuretap.workflows.datasets.image_checks import image_problem, upright_size
from featuretap.workflows.datasets.mask_files import mask_problem, read_mask
from featuretap.workflows.datasets.parts import part_folders
from featuretap.workflows.datasets.problems import raise_problems
from featuretap.workflows.datasets.splitting import relative_name, split
from featuretap.workflows.datasets.voc import listed

__all__ = ["MaskedImages", "open_masks"]

NAMES = "classes.txt"
LOOKED_AT = 20
"""Masks that are looked at to see whether they mean 255 as a class."""

MEANING = (
    f"the masks in {{!r}} have no value but 0 and {IGNORED}, which is ignored; a mask's pixels are the numbers of "
    "their classes: 0 for the background, 1 for what is to be found"
)


@dataclass(frozen=True)
class MaskedImages:
    """Image files, and the mask of each.

    Args:
        paths: the images.
        masks: file of every image's mask.
        classes: how many classes there are, so that a mask's values are below it or `IGNORED`.
    """

    paths: tuple[str, ...]
    masks: tuple[str, ...]
    classes: int

    labels = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        image = read_image(Path(self.paths[index]))
        mask = read_mask(self.masks[index])
        problem = mask_problem(self.masks[index], mask, image.size, self.classes)
        if problem:
            raise DataError(problem)
        return image, mask

    def name(self, index: int) -> str:
        """Return an image's path."""
        return self.paths[index]

    def check(self, index: int) -> str:
        """Return what is wrong with an image or its mask, or ""."""
        problem = image_problem(self.paths[index])
        if problem:
            return problem
        try:
            mask = read_mask(self.masks[index])
        except DataError as error:
            return str(error)
        return mask_problem(self.masks[index], mask, upright_size(self.paths[index]), self.classes)


class Place(NamedTuple):
    """Folders of images and of their masks, and the names that count, or None for all."""

    images: Path
    masks: Path
    names: tuple[str, ...] | None = None


class Pairs(NamedTuple):
    """Images and their masks, in one order."""

    images: list[str]
    masks: list[str]


def open_masks(folder: Path, val_fraction: float, seed: int) -> DataSet:
    """Open a folder of images and masks of the same names, in parts or as one, of which a part is kept for validation.

    The classes' names are the lines of "classes.txt", the background's first. Without it they are numbers, as many as
    the masks' largest value tells, for which all masks are read.

    Raises:
        DataError: there are no such folders, images without masks or the other way round, or fewer than two classes.
    """
    problems: list[str] = []
    parts = [_pairs(place, problems) for place in _places(folder)]
    raise_problems(problems, folder)
    classes = _named(folder) or _counted(folder, parts)
    _check_meaning(folder, parts[0].masks[:LOOKED_AT])
    if len(parts) == 1:
        parts = _made(folder, parts[0], val_fraction, seed)
    train, val = (MaskedImages(tuple(pairs.images), tuple(pairs.masks), len(classes)) for pairs in parts)
    return DataSet("segmentation", classes, train, val)


def _places(folder: Path) -> list[Place]:
    voc = folder / "SegmentationClass"
    if voc.is_dir():
        lists = [folder / "ImageSets" / "Segmentation" / f"{part}.txt" for part in ("train", "val")]
        whole = Place(folder / "JPEGImages", voc)
        if lists[0].is_file():
            return [whole._replace(names=listed(file)) for file in lists if file.is_file()]
        # Only some of VOC's images have masks.
        return [whole._replace(names=tuple(sorted(path.stem for path in images_below(voc))))]
    parts = part_folders(folder)
    if parts:
        return [Place(part / "images", part / "masks") for part in parts if part]
    images, masks = folder / "images", folder / "masks"
    if not (images.is_dir() and masks.is_dir()):
        raise DataError(
            f"{str(folder)!r} has no folders 'images' and 'masks'; put images into the one and their masks, PNG files "
            "of the same names, into the other, or give Pascal VOC's folders"
        )
    parts = part_folders(images)
    if parts:
        return [Place(part, masks / part.name) for part in parts if part]
    return [Place(images, masks)]


def _pairs(place: Place, problems: list[str]) -> Pairs:
    images, masks = _files(place.images, problems), _files(place.masks, problems)
    names = place.names or sorted({*images, *masks})
    problems += [f"the image {name!r} has no mask in {str(place.masks)!r}" for name in names if name not in masks]
    problems += [f"the mask {name!r} has no image in {str(place.images)!r}" for name in names if name not in images]
    both = [name for name in names if name in images and name in masks]
    return Pairs([str(images[name]) for name in both], [str(masks[name]) for name in both])


def _files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Return images by their paths in a folder, without the ending."""
    found: dict[str, Path] = {}
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; every image needs a mask of its name")
    for path in images_below(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            problems.append(f"{found[name].name!r} and {path.name!r} in {str(path.parent)!r} have one name")
        found[name] = path
    if not found:
        raise DataError(f"{str(folder)!r} holds no images")
    return found


def _named(folder: Path) -> tuple[str, ...]:
    path = folder / NAMES
    if not path.is_file():
        return ()
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is no text in UTF-8: {error}") from error
    classes = tuple(name.strip() for name in names)
    if len(classes) < 2:
        raise DataError(f"{str(path)!r} names fewer than two classes; the background is one of them, and the first")
    if len(classes) > IGNORED:
        raise DataError(f"{str(path)!r} names {len(classes)} classes; masks of 8 bits have room for {IGNORED}")
    if "" in classes or len(set(classes)) < len(classes):
        unusable = next(name for name in classes if not name or classes.count(name) > 1)
        what = f"{unusable!r} twice" if unusable else "a class without a name, on an empty line"
        raise DataError(f"{str(path)!r} has {what}; give every class a name of its own")
    return classes


def _counted(folder: Path, parts: Iterable[Pairs]) -> tuple[str, ...]:
    problems: list[str] = []
    largest = 0
    for path in (path for pairs in parts for path in pairs.masks):
        try:
            mask = read_mask(path)
        except DataError as error:
            problems.append(str(error))
        else:
            largest = max(largest, int(mask.max(initial=0, where=mask != IGNORED)))
    raise_problems(problems, folder)
    if largest == 0:
        raise DataError(MEANING.format(str(folder)))
    return tuple(f"class {number}" for number in range(largest + 1))


def _check_meaning(folder: Path, masks: Iterable[str]) -> None:
    """Refuse masks of black and white, which would be learned as background and nothing.

    Raises:
        DataError: no mask of those given has a class but the background, and some have 255.
    """
    found: set[int] = set()
    for path in masks:
        try:
            found.update(np.unique(read_mask(path)).tolist())
        except DataError:
            # Checking all files tells of it.
            return
    if found in ({0, IGNORED}, {IGNORED}):
        raise DataError(MEANING.format(str(folder)))


def _made(folder: Path, whole: Pairs, val_fraction: float, seed: int) -> list[Pairs]:
    names = [relative_name(path, folder) for path in whole.images]
    return [
        Pairs([whole.images[index] for index in part], [whole.masks[index] for index in part])
        for part in split(names, [0] * len(names), val_fraction, seed, str(folder))
    ]
