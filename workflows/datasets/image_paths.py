"""Paths of images that annotations name: inside the data set, or inside a folder that the user gave."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from featuretap.support.errors import DataError, Hint
from featuretap.support.text import first_few


def paths_inside(paths: Iterable[Path], roots: Sequence[Path]) -> list[Path]:
    """Return those of some paths that lie inside one of several folders, without "..".

    Paths are compared by their names: a link out of a folder is the choice of whoever made it.
    """
    absolute = [Path(os.path.abspath(root)) for root in roots]
    # Of "link/..", the system opens the folder above the link's target.
    plain = [Path(os.path.normpath(path)) for path in paths]
    return [path for path in plain if any(Path(os.path.abspath(path)).is_relative_to(root) for root in absolute)]


def raise_outside(names: Sequence[str], where: Path) -> None:
    """Refuse the images or folders outside the data set that a file names; without any, do nothing.

    Raises:
        DataError: there are some; the first five are named.
    """
    if names:
        raise DataError(
            f"{str(where)!r} names {first_few([repr(name) for name in names], 5)}, outside the data set",
            hint=Hint("name the folder that holds them with", "images_root="),
        )
