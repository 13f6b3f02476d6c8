"""Checks that images named in annotations are inside the data set, or inside a folder that the user allows."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from featuretap.support.errors import DataError, Hint
from featuretap.support.text import first_few


def paths_inside(paths: Iterable[Path], roots: Sequence[Path]) -> list[Path]:
    """Return the paths that are inside one of the folders, normalized without "..".

    Symbolic links are not resolved: a link out of the folder was made on purpose.

    Args:
        paths: the paths to filter.
        roots: the folders.

    Returns:
        The paths inside.
    """
    absolute = [Path(os.path.abspath(root)) for root in roots]
    # Normalize, since the system resolves "link/.." to the parent of the link's target.
    plain = [Path(os.path.normpath(path)) for path in paths]
    return [path for path in plain if any(Path(os.path.abspath(path)).is_relative_to(root) for root in absolute)]


def raise_outside(names: Sequence[str], where: Path) -> None:
    """Raise an error if a file names images or folders outside the data set.

    Args:
        names: the names outside the data set.
        where: the file.

    Raises:
        DataError: there are such names; the message contains the first five.
    """
    if names:
        raise DataError(
            f"{str(where)!r} names {first_few([repr(name) for name in names], 5)}, outside the data set",
            hint=Hint("to allow the folder that contains them, use", "images_root="),
        )
