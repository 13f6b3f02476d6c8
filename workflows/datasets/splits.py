"""Training and validation parts: folders, lists of names, or a split that is the same on every machine."""

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
    """Return a folder's folders "train" and, if there is one, "val" (or "valid", "validation"), whatever their case.

    Where there is no folder for validation but a folder "test", that one is used, with a warning.

    Raises:
        DataError: there are several folders for validation, or one without training images.
    """
    found = {part_name(path): path for path in folders_in(folder)}
    validation = [found[name] for name in VALIDATION if name in found]
    if len(validation) > 1:
        names = " and ".join(repr(path.name) for path in validation)
        raise DataError(f"{str(folder)!r} has {names}; keep the one that is for validation")
    if "train" not in found:
        if validation:
            raise DataError(f"{str(folder)!r} has {validation[0].name!r} but no 'train'; add the training images")
        return []
    if not validation and "test" in found:
        validation = [found["test"]]
        logger.warning("%r has no 'val'; 'test' is used as the validation set", str(folder))
    return [found["train"], *validation]


LISTS = (("train", "val"), ("trainval", "test"), ("train", "test"), ("train",), ("trainval",))
"""Pascal VOC's lists of training and validation images; the first pair that exists counts."""


def read_part_lists(*folders: Path) -> list[tuple[str, ...]]:
    """Return the names in Pascal VOC's lists of training and validation images, or of training images alone.

    The lists are those of the first folder that has some; nothing is returned without any. Where there is none for
    validation but "test.txt", that one is used, with a warning.

    Raises:
        DataError: there are lists, but none of training images, or one that cannot be read.
    """
    for folder in folders:
        there = {name for name in ("train", "trainval", "val", "test") if (folder / f"{name}.txt").is_file()}
        names = next((names for names in LISTS if there.issuperset(names)), ())
        if there and (not names or (names == ("trainval",) and "val" in there)):
            found = " and ".join(repr(f"{name}.txt") for name in sorted(there))
            raise DataError(f"{str(folder)!r} has {found} but no 'train.txt'; add the list of training images")
        if names:
            if "test" in names:
                logger.warning("%r has no 'val.txt'; 'test.txt' is used as the validation set", str(folder))
            return [_read_list(folder / f"{name}.txt") for name in names]
    return []


def _read_list(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not text in UTF-8: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{str(file)!r} names no image")
    if len(set(names)) < len(names):
        raise DataError(f"{str(file)!r} names {next(name for name in names if names.count(name) > 1)!r} twice")
    return tuple(names)


def check_classes(val: Sequence[str], train: Sequence[str], val_path: Path, train_path: Path, called: str) -> None:
    """Refuse validation images of classes that have no training images.

    Raises:
        DataError: there are some; the message calls them "classes" or "categories".
    """
    unknown = [name for name in val if name not in train]
    if unknown:
        raise DataError(
            f"{str(val_path)!r} has {called} that {str(train_path)!r} has not: {', '.join(map(repr, unknown))}; "
            "every validation class needs training images"
        )


def split(
    names: Sequence[str], groups: Sequence[Hashable], val_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Return the indices of training and validation images, each in ascending order, split group by group.

    The choice depends on the unique names and the seed alone: neither the order of files nor the machine matters, and
    adding or removing an image moves hardly any other. A group of two images or more has at least one in each part, and
    a single image goes to the training part, so that the other may be empty.

    Raises:
        DataError: the fraction is out of range.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; give a share between 0 and 1, such as 0.2")
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
    """Divide the files of a folder as `split` does, by their paths from the folder on."""
    names = [Path(os.path.relpath(file.name, folder)).as_posix() for file in files]
    return [[files[index] for index in part] for part in split(names, groups, val_fraction, seed)]


def rarest(classes: Sequence[Set[str]]) -> list[str]:
    """Return for every image the class that the fewest images have among those in it, "" where there is none.

    As groups of a split they keep rare classes in both parts, as far as images of several classes allow.
    """
    frequencies = Counter(name for inside in classes for name in inside)
    return [min(inside, key=lambda name: (frequencies[name], name), default="") for inside in classes]


def _rank(name: str, seed: int) -> bytes:
    # macOS may hand out names in another normal form than they were written in.
    return hashlib.sha256(f"{seed}/{unicodedata.normalize('NFC', name)}".encode(errors="surrogateescape")).digest()
