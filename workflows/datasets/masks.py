"""Segmentation data sets with a mask file per image."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap.support.errors import DataError
from featuretap.support.image_files import child, images_below
from featuretap.support.images import read_image
from featuretap.workflows.datasets.data_set import (
    DataSet,
    image_problem,
    raise_problems,
    upright_size,
)
from featuretap.workflows.datasets.mask_values import Coding, find_coding
from featuretap.workflows.datasets.splits import part_folders, read_part_lists, split_files

SAMPLED = 20
"""Number of masks to read in order to check that their values are the indices of the named classes."""

MASK_WORDS = frozenset(
    {
        "annotation",
        "gt",
        "gtfine",
        "label",
        "labelids",
        "labels",
        "labeltrainids",
        "mask",
        "masks",
        "seg",
        "segmentation",
    }
)
IMAGE_WORDS = frozenset({"image", "img", "sat", "leftimg8bit"})
"""Words in file names that distinguish masks from images, as in "0_mask.png"."""


@dataclass(frozen=True, slots=True)
class _MaskedImage:
    """An image file with its mask file, and the meaning of the mask's values."""

    name: str
    mask: str
    coding: Coding

    label = None

    def read(self) -> tuple[Image.Image, NDArray[np.uint8]]:
        image, mask = read_image(Path(self.name)), self.coding.read(self.mask)
        problem = self._mask_problem(mask, image.size)
        if problem:
            raise DataError(problem)
        return image, mask

    def check(self) -> str:
        problem = image_problem(self.name)
        if problem:
            return problem
        try:
            return self._mask_problem(self.coding.read(self.mask), upright_size(self.name))
        except DataError as error:
            return error.problem

    def _mask_problem(self, mask: NDArray[np.uint8], size: tuple[int, int]) -> str:
        """Return the problem that the sizes of mask and image differ, or ""."""
        height, width = mask.shape
        if (width, height) != size:
            return f"the mask {self.mask!r} is {width}×{height}, but its image is {size[0]}×{size[1]}"
        return ""


def open_masks(folder: Path, val_fraction: float, seed: int, *, voc: bool, known: tuple[str, ...] | None) -> DataSet:
    """Open a folder of images and masks with equal names, with or without parts "train" and "val".

    "classes.txt" or another file of `mask_values.TABLES` defines the classes and their values or colors. Without such a
    file, each value or color in the masks is a class, so all masks are read.

    Args:
        folder: the folder.
        val_fraction: fraction to hold out for validation, if there are no parts.
        seed: seed of the split.
        voc: whether the folders are those of Pascal VOC.
        known: classes of the model to evaluate, for masks without a table; None for training.

    Returns:
        The data set.

    Raises:
        DataError: files are missing or cannot be used, or the meaning of mask values is ambiguous.
    """
    problems: list[str] = []
    parts = [_pairs(*place, problems) for place in (_voc_places(folder) if voc else _places(folder))]
    raise_problems(problems, folder)
    coding = find_coding(folder, [mask for part in parts for _, mask in part], SAMPLED, known)
    files = [[_MaskedImage(image, mask, coding) for image, mask in part] for part in parts]
    held_out = len(files) == 1
    if held_out:
        files = split_files(files[0], folder, [0] * len(files[0]), val_fraction, seed)
    return DataSet("segmentation", coding.classes, files[0], files[1], held_out=held_out)


def _voc_places(folder: Path) -> list[tuple[Path, Path, tuple[str, ...] | None]]:
    """Return the same as `_places`, for the folders of Pascal VOC."""
    masks, sets = folder / "SegmentationClass", folder / "ImageSets"
    if not masks.is_dir():
        raise DataError(f"{str(folder)!r} has no folder 'SegmentationClass' with masks, as in Pascal VOC; add it")
    # Only some images of VOC have masks.
    lists = read_part_lists(sets / "Segmentation", sets) or [tuple(sorted(path.stem for path in images_below(masks)))]
    return [(folder / "JPEGImages", masks, names) for names in lists]


def _places(folder: Path) -> list[tuple[Path, Path, tuple[str, ...] | None]]:
    """Return for each part the folders of images and masks, and the names to use (None for all)."""
    parts = part_folders(folder)
    if parts and child(parts[0], "images").is_dir():
        return [(child(part, "images"), child(part, "masks"), None) for part in parts]
    if parts and any(_is_mask(path.stem) for path in images_below(parts[0])):
        return [(part, part, None) for part in parts]
    images, masks = child(folder, "images"), child(folder, "masks")
    if not images.is_dir() and any(_is_mask(path.stem) for path in images_below(folder)):
        return [(folder, folder, None)]
    if not (images.is_dir() and masks.is_dir()):
        raise DataError(
            f"{str(folder)!r} has no folders 'images' and 'masks'; put images into 'images' and PNG masks with the "
            "same names into 'masks', or use Pascal VOC folders"
        )
    return [(part, masks / part.name, None) for part in part_folders(images)] or [(images, masks, None)]


def _pairs(
    image_folder: Path, mask_folder: Path, listed: tuple[str, ...] | None, problems: list[str]
) -> list[tuple[str, str]]:
    """Return pairs of image and mask paths, and add missing files to `problems`."""
    images, masks = _files_by_name(image_folder, problems), _files_by_name(mask_folder, problems)
    if image_folder == mask_folder:
        masks = {name: path for name, path in images.items() if _is_mask(name)}
        images = {name: path for name, path in images.items() if name not in masks}
    _rename(masks, images)
    names = listed or sorted({*images, *masks})
    problems += [f"the image {name!r} has no mask in {str(mask_folder)!r}" for name in names if name not in masks]
    problems += [f"the mask {name!r} has no image in {str(image_folder)!r}" for name in names if name not in images]
    return [(str(images[name]), str(masks[name])) for name in names if name in images and name in masks]


def _rename(masks: dict[str, Path], images: Iterable[str]) -> None:
    """Rename masks without an image, such as "0_mask", to the image whose name differs only in such words."""
    unpaired = _by_key(name for name in masks if name not in images)
    for key, names in _by_key(name for name in images if name not in masks).items():
        if key and len(names) == len(unpaired.get(key, ())) == 1:
            masks[names[0]] = masks.pop(unpaired[key][0])


def _by_key(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by what remains of them without `MASK_WORDS` and `IMAGE_WORDS`."""
    found: dict[str, list[str]] = {}
    for name in names:
        folder, _, stem = name.rpartition("/")
        words = [word for word in _words(stem) if word.lower() not in MASK_WORDS | IMAGE_WORDS]
        found.setdefault(f"{folder}/{' '.join(words)}" if words else "", []).append(name)
    return found


def _is_mask(name: str) -> bool:
    return any(word.lower() in MASK_WORDS for word in _words(name.rpartition("/")[2]))


def _words(stem: str) -> list[str]:
    return re.split(r"[ ._-]+", stem)


def _files_by_name(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Return the images in a folder by relative path without suffix."""
    found: dict[str, Path] = {}
    if not folder.is_dir():
        raise DataError(f"no folder {str(folder)!r}; each image needs a mask with the same name")
    for path in images_below(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            problems.append(f"{found[name].name!r} and {path.name!r} in {str(path.parent)!r} have the same name")
        found[name] = path
    if not found:
        raise DataError(f"{str(folder)!r} contains no images")
    return found
