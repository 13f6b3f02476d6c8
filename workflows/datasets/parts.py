"""The folders of a data set's two parts. No torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from featuretap.support.errors import DataError
from featuretap.support.image_files import folders_in

__all__ = ["PartFolders", "part_folders"]

logger = logging.getLogger("featuretap")

VALIDATION = ("val", "valid", "validation")


class PartFolders(NamedTuple):
    """Where the images to learn from and to judge by are; without the latter they are split off the former."""

    train: Path
    val: Path | None


def part_folders(folder: Path) -> PartFolders | None:
    """Return a folder's folders "train" and "val" (or "valid", "validation"), whatever their case; None without any.

    Where nothing is kept for validation but there is a folder "test", that is judged by, which a warning says.

    Raises:
        DataError: there are several folders for validation, or one and nothing to learn from.
    """
    found = {path.name.lower(): path for path in folders_in(folder)}
    validation = [found[name] for name in VALIDATION if name in found]
    if len(validation) > 1:
        names = " and ".join(repr(path.name) for path in validation)
        raise DataError(f"{str(folder)!r} has {names}; keep the one that is for validation")
    if "train" not in found:
        if validation:
            raise DataError(f"{str(folder)!r} has {validation[0].name!r} but no 'train'; add the images to learn from")
        return None
    if not validation and "test" in found:
        validation = [found["test"]]
        logger.warning("%r has no 'val', so that 'test' is what models are judged by", str(folder))
    return PartFolders(found["train"], validation[0] if validation else None)
