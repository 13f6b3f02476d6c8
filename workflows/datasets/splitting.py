"""Keeping a part of the images for validation, the same one on every machine. No torch."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from featuretap.support.errors import DataError

__all__ = ["Split", "rarest", "relative_name", "split"]


class Split(NamedTuple):
    """Which images are learned from and which are judged by, each in ascending order."""

    train: list[int]
    val: list[int]


def split(names: Sequence[str], groups: Sequence[Hashable], val_fraction: float, seed: int, where: str) -> Split:
    """Divide images into two parts, group by group.

    Who is chosen follows from the names and the seed alone: neither the order of files nor the machine matters, and an
    image that is added or removed moves hardly any other.

    Args:
        names: name of every image, each its own.
        groups: the group of every image, such as its class. A group of two images or more has at least one in each
            part, and a single image is learned from.
        val_fraction: share of every group that is judged by, between 0 and 1.
        seed: another number gives another choice.
        where: what is divided, for messages.

    Raises:
        DataError: the share is none, or there is nothing to judge by.
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
            val.update(sorted(indices, key=lambda index: _lot(names[index], seed))[:count])
    if not val:
        raise DataError(
            f"{where!r} has no two images of a kind, so that none can be kept for validation; add images, or give "
            "parts 'train' and 'val'"
        )
    return Split([index for index in range(len(names)) if index not in val], sorted(val))


def _lot(name: str, seed: int) -> bytes:
    # macOS may hand out names in another normal form than they were written in.
    return hashlib.sha256(f"{seed}/{unicodedata.normalize('NFC', name)}".encode(errors="surrogateescape")).digest()


def rarest(classes: Sequence[Set[str]]) -> list[str]:
    """Return for every image the class that the fewest images have among those in it, "" where there is none.

    As groups of a split they keep rare classes in both parts, as far as images of several classes allow.
    """
    frequencies = Counter(name for inside in classes for name in inside)
    return [min(inside, key=lambda name: (frequencies[name], name), default="") for inside in classes]


def relative_name(path: str, folder: Path) -> str:
    """Return what to call a file of a data set when it is split: its path from the set's folder, with slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()
