"""Opening a data set by its name, or a folder in the format that its task and files tell. No torch at module level."""

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
    """Open a data set, and check whatever needs no image to be decoded.

    The source is a folder, the YAML file of a YOLO data set, or the name of a set in whatever case: "digits", or a
    class of torchvision's such as "MNIST". A name without a separator is a set's before it is a folder's. Downloads are
    kept in a folder of the user's cache, unless another is given; `masks` are the outlines of objects, which some
    detectors need; `data_format` is one of `recognition.FORMATS`, for folders that can be read in several ways.
    Data that a model is evaluated on, whose classes are `known`, may lack some of them, and images to hold out for
    validation, which is then all of it. Annotations name images in the folder, or in `images_root`.

    Raises:
        DataError: there is no such data set, it is for another task, or it cannot be used as it is.
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
        return replace(open_named(row, place, val_fraction, seed), label=row.name)
    with _reading(source):
        reading = choose_reading(folder, task, data_format)
        others = [] if reading or task != "classification" else other_folders(folder)
        if len(others) > 1:
            raise DataError(
                f"{source!r} has the folders {' and '.join(map(repr, others))}, which are in no known format and "
                "seldom classes; name those of a segmentation data set 'images' and 'masks'",
                hint=Hint("or choose with", "format='classes'"),
            )
        reading = reading or _expected(folder, task)
        data = _open_folder(folder, reading, val_fraction, seed, masks, known, images_root)
    if data.val:
        return data
    if known is None:
        raise DataError(
            f"{source!r} has no two images of a kind, so that none can be kept for validation; add images, or give "
            "parts 'train' and 'val'"
        )
    return replace(data, train=[], val=data.train, held_out=False)


def recognise_task(source: str, data_format: str | None) -> Task:
    """Return the task that a data set is for.

    Raises:
        DataError: there is no such data set, or it can be read in several ways.
    """
    if source.lower() in NAMED_SETS:
        return "classification"
    with _reading(source):
        reading = choose_reading(Path(os.path.expanduser(source)), None, data_format)
    # The reader of class folders reports what is missing of a folder that holds none of the formats.
    return (reading or CLASSES).task


def describe(data: DataSet) -> str:
    """Return a line such as "COCO: 120 training and 30 validation images, 3 classes, boxes and masks"."""
    return _describe(data, f"{len(data.train)} training and {len(data.val)} validation images")


def describe_part(data: DataSet, part: Part) -> list[str]:
    """Return a line such as "COCO: 30 validation images, 3 classes", and one more where the data has no such part."""
    kind, count = {
        "val": ("validation image", len(data.val)),
        "train": ("training image", len(data.train)),
        "all": ("image", len(data.train) + len(data.val)),
    }[part]
    lines = [_describe(data, f"{count} {kind}{'s' * (count != 1)}")]
    if part == "val" and data.held_out:
        lines.append(
            f"without a validation part, these are held out of {len(data.train) + count} images as in training; part "
            "'all' evaluates every image"
        )
    elif part == "val" and not data.train:
        lines.append("without a validation part and two images of a class, every image is evaluated")
    return lines


def _describe(data: DataSet, images: str) -> str:
    classes = "1 class" if len(data.classes) == 1 else f"{len(data.classes)} classes"
    return ", ".join(filter(None, (f"{data.label}: {images}", classes, data.targets)))


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Refuse a source that is neither a folder nor a YAML file, and report what the disk cannot read inside."""
    folder = Path(os.path.expanduser(source))
    # Unlike those of a path, these functions accept names that are longer than any file's.
    is_yaml = folder.suffix.lower() in (".yaml", ".yml") and os.path.isfile(folder)
    if not (source and (is_yaml or os.path.isdir(folder))):
        raise DataError(_not_a_folder(source, folder))
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {str(error.filename or folder)!r}: {error.strerror}") from error


def _expected(folder: Path, task: Task) -> Reading:
    """Return the reading whose reader reports what is missing of a folder that is in no format."""
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
            f"{str(folder)!r} has boxes only, as Pascal VOC does; masks need annotations in COCO's or YOLO's format"
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
        return f"{source!r} is a file; give the folder of a data set, or a name such as 'digits'"
    if Path(source).name != source:
        return f"there is no folder {source!r}; give the folder of a data set, or a name such as 'digits'"
    names = {name: row.name for name, row in NAMED_SETS.items()}
    near = did_you_mean(source.lower(), NAMED_SETS, names) or f"; the named sets are {', '.join(names.values())}"
    return f"no folder and no data set named {source!r}{near}"
