"""Opening a data set by name, or a folder, whose format is detected from its files and the task."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from platformdirs import user_cache_path

from featuretap.support.errors import DataError, Hint, did_you_mean
from featuretap.workflows.datasets.coco import open_coco
from featuretap.workflows.datasets.data_set import DataSet, Part, Task, utf8
from featuretap.workflows.datasets.image_folder import open_image_folder
from featuretap.workflows.datasets.masks import open_masks
from featuretap.workflows.datasets.named import open_named
from featuretap.workflows.datasets.named_sets import NAMED_SETS
from featuretap.workflows.datasets.recognition import (
    CLASSES,
    COCO,
    MASKS,
    VOC_BOXES,
    VOC_MASKS,
    YOLO,
    Reading,
    choose_reading,
    find_readings,
    other_folders,
    xml_files,
)
from featuretap.workflows.datasets.voc import open_voc
from featuretap.workflows.datasets.yolo import open_yolo

logger = logging.getLogger("featuretap")


def open_data(
    source: str,
    task: Task,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    download_to: Path | None = None,
    masks: bool = False,
    data_format: str | None = None,
    known: tuple[str, ...] | None = None,
    images_root: Path | None = None,
) -> DataSet:
    """Open a data set, and check everything that does not require decoding images.

    Args:
        source: a folder, the YAML file of a YOLO data set, or the name of a data set in upper or lower case: "digits",
            or a data set class of torchvision such as "MNIST". A name takes precedence over a folder of that name.
        task: task of the model.
        val_fraction: fraction to hold out for validation, if the data has no validation set.
        seed: seed of the split.
        download_to: folder for downloads; by default a folder in the user's cache.
        masks: whether to read object masks, which some detectors need.
        data_format: one of `recognition.FORMATS`, for folders that match several formats.
        known: classes of the model to evaluate. The data may then contain only some of them; data too small for a
            validation set becomes one as a whole.
        images_root: folder outside the data set that annotations may load images from.

    Returns:
        The data set.

    Raises:
        DataError: the data set does not exist, is for another task, or cannot be used.
        MissingExtraError: a required package is not installed.
    """
    row = NAMED_SETS.get(source.lower())
    folder = Path(os.path.expanduser(source))
    if row and task != "classification":
        there = f"; use {os.path.join('.', source)!r} for the folder" if folder.is_dir() else ""
        raise DataError(f"the data set {row.name!r} is for classification, but the model is for {task}{there}")
    if row:
        if folder.is_dir():
            logger.warning("%r means the named data set; use %r for the folder", source, os.path.join(".", source))
        place = download_to or user_cache_path("featuretap", appauthor=False) / "datasets"
        return replace(open_named(row, place, val_fraction, seed), label=row.name)
    with _reading(source):
        reading = choose_reading(folder, task, data_format)
        others = [] if reading or task != "classification" else other_folders(folder)
        if len(others) > 1:
            raise DataError(
                f"{source!r} has the folders {' and '.join(map(repr, others))}, which match no known format and are "
                "unlikely to be classes; for segmentation, name them 'images' and 'masks'",
                hint=Hint("to use them as classes, set", "format='classes'"),
            )
        reading = reading or _expected(folder, task)
        data = _open_folder(folder, reading, val_fraction, seed, masks, known, images_root)
    if data.val:
        return data
    if known is None:
        raise DataError(
            f"{source!r} has no class with two images, so none can be held out for validation; add images, or create "
            "folders 'train' and 'val'"
        )
    return replace(data, train=[], val=data.train, held_out=False)


def recognize_task(source: str, data_format: str | None) -> Task:
    """Return the task of a data set.

    Args:
        source: the data set, as for `open_data`.
        data_format: one of `recognition.FORMATS`, or None to detect the format.

    Returns:
        The task.

    Raises:
        DataError: the data set does not exist, or matches several formats.
    """
    if source.lower() in NAMED_SETS:
        return "classification"
    with _reading(source):
        reading = choose_reading(Path(os.path.expanduser(source)), None, data_format)
    # If no format matches, the reader of class folders reports what is missing.
    return (reading or CLASSES).task


def check_source(source: str) -> None:
    """Check that a data set exists: as a name, a folder or a YAML file.

    Args:
        source: the data set, as for `open_data`.

    Raises:
        DataError: the data set does not exist.
    """
    if source.lower() not in NAMED_SETS:
        with _reading(source):
            pass


def describe(data: DataSet) -> str:
    """Return a summary such as "COCO: 120 training and 30 validation images, 3 classes, boxes and masks"."""
    return _describe(data, f"{len(data.train)} training and {len(data.val)} validation images")


def describe_part(data: DataSet, part: Part) -> list[str]:
    """Return a line such as "COCO: 30 validation images, 3 classes", and a note if the data has no validation set."""
    kind, count = {
        "val": ("validation image", len(data.val)),
        "train": ("training image", len(data.train)),
        "all": ("image", len(data.train) + len(data.val)),
    }[part]
    lines = [_describe(data, f"{count} {kind}{'s' * (count != 1)}")]
    if part == "val" and data.held_out:
        lines.append(
            f"the data has no validation set: evaluating on the images held out from {len(data.train) + count} in "
            "training; part 'all' selects all images"
        )
    elif part == "val" and not data.train:
        lines.append("the data has no validation set and no class with two images: evaluating on all images")
    return lines


def _describe(data: DataSet, images: str) -> str:
    classes = "1 class" if len(data.classes) == 1 else f"{len(data.classes)} classes"
    return ", ".join(filter(None, (f"{data.label}: {images}", classes, data.targets)))


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Raise DataError if a source is neither a folder nor a YAML file, and for OSErrors inside the block."""
    folder = Path(os.path.expanduser(source))
    # Unlike methods of Path, these functions accept names that are too long for a file.
    is_yaml = folder.suffix.lower() in (".yaml", ".yml") and os.path.isfile(folder)
    if not (source and (is_yaml or os.path.isdir(folder))):
        raise DataError(_not_a_folder(source, folder))
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {str(error.filename or folder)!r}: {error.strerror}") from error


def _expected(folder: Path, task: Task) -> Reading:
    """Return the format whose reader reports what is missing in a folder that matches no format."""
    if task == "detection":
        return VOC_BOXES if any(xml_files(folder)) else COCO
    return CLASSES if task == "classification" else MASKS


def _open_folder(
    folder: Path,
    reading: Reading,
    val_fraction: float,
    seed: int,
    masks: bool,
    known: tuple[str, ...] | None,
    images_root: Path | None,
) -> DataSet:
    if reading == VOC_BOXES and masks:
        raise DataError(
            f"{str(folder)!r} is in Pascal VOC format, which has boxes only; masks need annotations in COCO or YOLO "
            "format"
        )
    if reading.task == "classification":
        mixed = any(other != CLASSES for other in find_readings(folder))
        data = open_image_folder(folder, val_fraction, seed, complete=known is None, mixed=mixed)
    elif reading.task == "segmentation":
        data = open_masks(folder, val_fraction, seed, voc=reading == VOC_MASKS, known=known)
    elif reading == VOC_BOXES:
        data = open_voc(folder, val_fraction, seed)
    elif reading == YOLO:
        data = open_yolo(folder, val_fraction, seed, masks, images_root)
    else:
        data = open_coco(folder, val_fraction, seed, masks, images_root)
    classes = tuple(map(utf8, data.classes))
    return replace(data, classes=classes, label=reading.label, targets=data.targets or reading.targets)


def _not_a_folder(source: str, folder: Path) -> str:
    if os.path.isfile(folder):
        return f"{source!r} is a file; choose the folder of a data set, or a name such as 'digits'"
    if Path(source).name != source:
        return f"no folder {source!r}; choose the folder of a data set, or a name such as 'digits'"
    names = {name: row.name for name, row in NAMED_SETS.items()}
    near = did_you_mean(source.lower(), NAMED_SETS, names) or f"; the named data sets are {', '.join(names.values())}"
    return f"no folder or data set named {source!r}{near}"
