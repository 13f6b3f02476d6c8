"""Folders of images with a mask for each, for segmentation."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featuretap.support.errors import DataError
from featuretap.support.image_files import images_below
from featuretap.support.images import read_image
from featuretap.workflows.datasets.data_set import (
    IGNORED,
    DataSet,
    image_problem,
    raise_problems,
    upright_size,
)
from featuretap.workflows.datasets.splits import part_folders, read_part_lists, split_files

MODES = ("1", "L", "P")
"""Pillow's names of images with one value of up to 8 bits for each pixel."""

NAMES = "classes.txt"
SAMPLED = 20
"""Masks that are read to see whether they use 255 as a class."""

NO_CLASSES = (
    f"the masks in {{!r}} have no value but 0 and {IGNORED}, which is ignored; a mask's pixels are the numbers of "
    "their classes: 0 for the background, 1 for what is to be found"
)


@dataclass(frozen=True, slots=True)
class _MaskedImage:
    """An image file with the file of its mask, whose values are below the number of classes, or `IGNORED`."""

    name: str
    mask: str
    classes: int

    label = None

    def read(self) -> tuple[Image.Image, NDArray[np.uint8]]:
        image, mask = read_image(Path(self.name)), _read_mask(self.mask)
        problem = self._mask_problem(mask, image.size)
        if problem:
            raise DataError(problem)
        return image, mask

    def check(self) -> str:
        problem = image_problem(self.name)
        if problem:
            return problem
        try:
            return self._mask_problem(_read_mask(self.mask), upright_size(self.name))
        except DataError as error:
            return str(error)

    def _mask_problem(self, mask: NDArray[np.uint8], size: tuple[int, int]) -> str:
        """Return that the mask is not of its image's size (width, height) or has values that are no class, or ""."""
        height, width = mask.shape
        if (width, height) != size:
            return f"the mask {self.mask!r} is {width}×{height}, but its image is {size[0]}×{size[1]}"
        largest = _largest(mask)
        if largest >= self.classes:
            return (
                f"the mask {self.mask!r} has the value {largest}, but there are {self.classes} classes, from 0 to "
                f"{self.classes - 1}, and {IGNORED} for what is ignored"
            )
        return ""


def open_masks(folder: Path, val_fraction: float, seed: int) -> DataSet:
    """Open a folder of images and masks of the same names, in parts or as one, of which a part is kept for validation.

    The classes' names are the lines of "classes.txt", the background's first. Without it they are numbers, up to the
    masks' largest value, for which all masks are read.
    """
    problems: list[str] = []
    parts = [_pairs(*place, problems) for place in _places(folder)]
    raise_problems(problems, folder)
    classes = _read_names(folder) or _count_classes(folder, [mask for part in parts for _, mask in part])
    _check_values(folder, [mask for _, mask in parts[0][:SAMPLED]])
    files = [[_MaskedImage(image, mask, len(classes)) for image, mask in part] for part in parts]
    if len(files) == 1:
        files = split_files(files[0], folder, [0] * len(files[0]), val_fraction, seed)
    return DataSet("segmentation", classes, files[0], files[1])


def _places(folder: Path) -> list[tuple[Path, Path, tuple[str, ...] | None]]:
    """Return for each part the folders of images and of masks, and the names that count, or None for all."""
    voc = folder / "SegmentationClass"
    if voc.is_dir():
        # Only some of VOC's images have masks.
        lists = read_part_lists(folder / "ImageSets" / "Segmentation") or [
            tuple(sorted(path.stem for path in images_below(voc)))
        ]
        return [(folder / "JPEGImages", voc, names) for names in lists]
    parts = part_folders(folder)
    if parts:
        return [(part / "images", part / "masks", None) for part in parts]
    images, masks = folder / "images", folder / "masks"
    if not (images.is_dir() and masks.is_dir()):
        raise DataError(
            f"{str(folder)!r} has no folders 'images' and 'masks'; put images into the one and their masks, PNG files "
            "of the same names, into the other, or give Pascal VOC's folders"
        )
    return [(part, masks / part.name, None) for part in part_folders(images)] or [(images, masks, None)]


def _pairs(
    image_folder: Path, mask_folder: Path, listed: tuple[str, ...] | None, problems: list[str]
) -> list[tuple[str, str]]:
    """Return the paths of images and masks; what is missing is added to `problems`."""
    images, masks = _files_by_name(image_folder, problems), _files_by_name(mask_folder, problems)
    names = listed or sorted({*images, *masks})
    problems += [f"the image {name!r} has no mask in {str(mask_folder)!r}" for name in names if name not in masks]
    problems += [f"the mask {name!r} has no image in {str(image_folder)!r}" for name in names if name not in images]
    return [(str(images[name]), str(masks[name])) for name in names if name in images and name in masks]


def _files_by_name(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Return images by their paths in a folder, without the suffix."""
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


def _read_mask(path: str) -> NDArray[np.uint8]:
    """Return the class of every pixel (H, W). A palette only colours it for viewing, and is ignored."""
    if not path.lower().endswith(".png"):
        raise DataError(f"the mask {path!r} is not a PNG file; other formats may change its numbers")
    try:
        with Image.open(path) as image:
            mode, mask = image.mode, np.array(ImageOps.exif_transpose(image))
    except Exception as error:
        # Whatever Pillow's readers let through.
        raise DataError(f"the mask {image_problem(path) or f'{path!r} is damaged: {error}'}") from error
    if mode not in MODES:
        raise DataError(
            f"the mask {path!r} is of mode {mode!r}; masks are of 'L' or 'P', with the number of a class for each pixel"
        )
    return mask.astype(np.uint8)


def _largest(mask: NDArray[np.uint8]) -> int:
    return int(mask.max(initial=0, where=mask != IGNORED))


def _read_names(folder: Path) -> tuple[str, ...]:
    """Return the classes in "classes.txt", or nothing without one."""
    path = folder / NAMES
    if not path.is_file():
        return ()
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not text in UTF-8: {error}") from error
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


def _count_classes(folder: Path, masks: Iterable[str]) -> tuple[str, ...]:
    """Return numbered classes, up to the largest value of all masks."""
    problems: list[str] = []
    largest = 0
    for path in masks:
        try:
            largest = max(largest, _largest(_read_mask(path)))
        except DataError as error:
            problems.append(str(error))
    raise_problems(problems, folder)
    if largest == 0:
        raise DataError(NO_CLASSES.format(str(folder)))
    return tuple(f"class {number}" for number in range(largest + 1))


def _check_values(folder: Path, masks: Iterable[str]) -> None:
    """Refuse black and white masks (0 and 255), which would train a model on background alone."""
    found: set[int] = set()
    for path in masks:
        try:
            found.update(np.unique(_read_mask(path)).tolist())
        except DataError:
            # Checking all files reports it.
            return
    if found in ({0, IGNORED}, {IGNORED}):
        raise DataError(NO_CLASSES.format(str(folder)))
