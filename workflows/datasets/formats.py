"""Opening a data set by its name, or a folder in the format that its task and files tell. No torch at module level."""

import logging
import os
from pathlib import Path

from platformdirs import user_cache_path

from featuretap.support.errors import DataError, did_you_mean
from featuretap.workflows.datasets.coco import open_coco
from featuretap.workflows.datasets.data_set import DataSet, Task
from featuretap.workflows.datasets.image_folder import open_image_folder
from featuretap.workflows.datasets.masks import open_masks
from featuretap.workflows.datasets.named import open_named
from featuretap.workflows.datasets.named_sets import NAMED_SETS
from featuretap.workflows.datasets.voc import has_voc_annotations, open_voc

logger = logging.getLogger("featuretap")


def open_data(
    source: str,
    task: Task,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    download_to: Path | None = None,
    masks: bool = False,
) -> DataSet:
    """Open a data set, and check whatever needs no image to be decoded.

    The source is a folder, or the name of a set in whatever case: "digits", or a class of torchvision's such as
    "MNIST". A name without a separator is a set's before it is a folder's. Downloads are kept in a folder of the user's
    cache, unless another is given; `masks` are the outlines of objects, which some detectors need.

    Raises:
        DataError: there is no such data set, or it cannot be used as it is.
        MissingExtraError: what it needs is not installed.
    """
    row = NAMED_SETS.get(source.lower())
    folder = Path(os.path.expanduser(source))
    if row and task != "classification":
        there = f"; write {os.path.join('.', source)!r} for the folder here" if folder.is_dir() else ""
        raise DataError(f"the data set {row.name!r} is for classification, and a model for {task} was asked for{there}")
    if row:
        if folder.is_dir():
            logger.warning(
                "%r is the data set of that name; write %r for the folder", source, os.path.join(".", source)
            )
        place = download_to or user_cache_path("featuretap", appauthor=False) / "datasets"
        return open_named(row, place, val_fraction, seed)
    if not (source and folder.is_dir()):
        raise DataError(_not_a_folder(source, folder))
    try:
        if task == "classification":
            return open_image_folder(folder, val_fraction, seed)
        if task == "segmentation":
            return open_masks(folder, val_fraction, seed)
        if not has_voc_annotations(folder):
            return open_coco(folder, val_fraction, seed, masks)
        if not masks:
            return open_voc(folder, val_fraction, seed)
    except OSError as error:
        raise DataError(f"cannot read {str(error.filename or folder)!r}: {error.strerror}") from error
    raise DataError(f"{str(folder)!r} has boxes only, as Pascal VOC does; masks need annotations in COCO's format")


def _not_a_folder(source: str, folder: Path) -> str:
    if folder.is_file():
        return f"{source!r} is a file; give the folder of a data set, or a name such as 'digits'"
    if Path(source).name != source:
        return f"there is no folder {source!r}; give the folder of a data set, or a name such as 'digits'"
    names = {name: row.name for name, row in NAMED_SETS.items()}
    near = did_you_mean(source.lower(), NAMED_SETS, names) or f"; the named sets are {', '.join(names.values())}"
    return f"no folder and no data set named {source!r}{near}"
