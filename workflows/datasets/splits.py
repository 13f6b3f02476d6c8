"""Training and validation parts: folders, lists of names, or a reproducible split."""

import hashlib
import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence, Set
from pathlib import Path
from typing import TypeVar

from featuretap.support.errors import DataError
from featuretap.support.image_files import folders_in
from featuretap.workflows.datasets.data_set import Sample
from featuretap.workflows.datasets.recognition import part_name

logger = logging.getLogger("featuretap")

VALIDATION = ("val", "valid", "validation")

File = TypeVar("File", bound=Sample)


def part_folders(folder: Path) -> list[Path]:
    """Return the subfolders "train" and, if it exists, "val" (or "valid", "validation"), in upper or lower case.

    Without a validation folder, a folder "test" is used, with a warning.

    Args:
        folder: the folder.

    Returns:
        The folders of the training and the validation part, or an empty list without "train".

    Raises:
        DataError: there are several folders for validation, or a validation folder without "train".
    """
    found = {part_name(path): path for path in folders_in(folder)}
    validation = [found[name] for name in VALIDATION if name in found]
    if len(validation) > 1:
        names = " and ".join(repr(path.name) for path in validation)
        raise DataError(f"{str(folder)!r} has {names}; keep only the validation folder")
    if "train" not in found:
        if validation:
            raise DataError(f"{str(folder)!r} has {validation[0].name!r} but no 'train'; add the training images")
        return []
    if not validation and "test" in found:
        validation = [found["test"]]
        logger.warning("%r has no 'val'; using 'test' as the validation set", str(folder))
    return [found["train"], *validation]


LISTS = (("train", "val"), ("trainval", "test"), ("train", "test"), ("train",), ("trainval",))
"""Names of Pascal VOC's lists of training and validation images, in order of preference."""


def read_part_lists(*folders: Path) -> list[tuple[str, ...]]:
    """Read Pascal VOC's lists of training and validation images.

    Without a list for validation, "test.txt" is used, with a warning.

    Args:
        *folders: folders to search; the first one with lists is used.

    Returns:
        Names of the training images and, if there is such a list, of the validation images; empty without lists.

    Raises:
        DataError: a list of training images is missing, or a list cannot be read.
    """
    for folder in folders:
        there = {name for name in ("train", "trainval", "val", "test") if (folder / f"{name}.txt").is_file()}
        names = next((names for names in LISTS if there.issuperset(names)), ())
        if there and (not names or (names == ("trainval",) and "val" in there)):
            found = " and ".join(repr(f"{name}.txt") for name in sorted(there))
            raise DataError(f"{str(folder)!r} has {found} but no 'train.txt'; add the list of training images")
        if names:
            if "test" in names:
                logger.warning("%r has no 'val.txt'; using 'test.txt' as the validation set", str(folder))
            return [_read_list(folder / f"{name}.txt") for name in names]
    return []


def _read_list(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not UTF-8 text: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{str(file)!r} contains no image names")
    if len(set(names)) < len(names):
        raise DataError(f"{str(file)!r} contains {next(name for name in names if names.count(name) > 1)!r} twice")
    return tuple(names)


def check_classes(val: Sequence[str], train: Sequence[str], val_path: Path, train_path: Path, called: str) -> None:
    """Check that each validation class has training images.

    Args:
        val: validation classes.
        train: training classes.
        val_path: file or folder of the validation part.
        train_path: file or folder of the training part.
        called: "classes" or "categories", for the message.

    Raises:
        DataError: validation classes have no training images.
    """
    unknown = [name for name in val if name not in train]
    if unknown:
        raise DataError(
            f"{str(val_path)!r} has {called} that {str(train_path)!r} does not have: {', '.join(map(repr, unknown))}; "
            "each validation class needs training images"
        )


def split(
    names: Sequence[str], groups: Sequence[Hashable], val_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split images into a training and a validation part, group by group.

    The split depends only on the names and the seed. The order of files and the machine do not matter, and adding or
    removing an image moves hardly any other image. A group of two or more images has at least one in each part. A
    single image goes to the training part, so the validation part may be empty.

    Args:
        names: unique names of the images.
        groups: group of each image, such as its class.
        val_fraction: fraction of the images in the validation part.
        seed: seed of the split.

    Returns:
        Indices of the training and the validation images, each in ascending order.

    Raises:
        DataError: the fraction is out of range.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must be between 0 and 1, such as 0.2; got {val_fraction}")
    members: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    val: set[int] = set()
    for indices in members.values():
        if len(indices) > 1:
            count = min(max(round(val_fraction * len(indices)), 1), len(indices) - 1)
            val.update(sorted(indices, key=lambda index: _rank(names[index], seed))[:count])
    return [index for index in range(len(names)) if index not in val], sorted(val)


def split_files(
    files: Sequence[File], folder: Path, groups: Sequence[Hashable], val_fraction: float, seed: int
) -> list[list[File]]:
    """Split files as `split` does, by their paths relative to a folder.

    Args:
        files: the files.
        folder: the folder.
        groups: group of each file, such as its class.
        val_fraction: fraction of the files in the validation part.
        seed: seed of the split.

    Returns:
        The training and the validation files.
    """
    names = [Path(os.path.relpath(file.name, folder)).as_posix() for file in files]
    return [[files[index] for index in part] for part in split(names, groups, val_fraction, seed)]


def rarest(classes: Sequence[Set[str]]) -> list[str]:
    """Return for each image the rarest of its classes, or "" for an image without classes.

    As groups of a split, these classes keep rare classes in both parts, as far as images with several classes allow.
    """
    frequencies = Counter(name for inside in classes for name in inside)
    return [min(inside, key=lambda name: (frequencies[name], name), default="") for inside in classes]


def _rank(name: str, seed: int) -> bytes:
    # Normalize, since macOS may return names in another Unicode normal form than they were written in.
    return hashlib.sha256(f"{seed}/{unicodedata.normalize('NFC', name)}".encode(errors="surrogateescape")).digest()
