"""Recognising the formats that a folder can be read as, by the names and contents of its files. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from featuretap.support.errors import DataError, Hint
from featuretap.support.image_files import child, folders_in, is_hidden, is_image_file

if TYPE_CHECKING:
    from featuretap.workflows.datasets.data_set import Task

DEFAULT_HEADS: Mapping[Task, str] = {
    "classification": "classification",
    "detection": "ssdlite",
    "segmentation": "lraspp",
}
"""Task → the head that is trained where none was chosen: the smallest that was made for mobile backbones."""

COCO_KEYS = (b'"images"', b'"annotations"', b'"categories"')
OUTLINES = re.compile(rb'"segmentation"\s*:\s*(\[\s*\[|\{)')
MASK_NAME = re.compile(r"(.*[ ._-])?masks?([ ._-].*)?", re.IGNORECASE)
YOLO_KEYS = (re.compile(rb"^names\s*:", re.MULTILINE), re.compile(rb"^(train|val)\s*:", re.MULTILINE))

NO_CLASSES = re.compile(
    r"(images|masks|labels|annotations|jpegimages|imagesets|segmentationclass|segmentationobject"
    r"|(train|val|valid|validation|test)[0-9]*|obj_[a-z]+_data)",
    re.IGNORECASE,
)
"""Names of folders that other formats have, and that are classes only where nothing else is there."""


LABEL_LINE = re.compile(rb"\s*\d+(\s+-?\d*\.?\d+(e[-+]?\d+)?){4,}\s*(\n|$)", re.IGNORECASE)
"""The first line of a label file of YOLO's that has one."""

LOOKED_AT = 100
"""Text files beside images that are read to find labels among them; those of images without objects are empty."""


class Reading(NamedTuple):
    """A way to read a folder.

    Attributes:
        format: as the setting `format` calls it.
        task: what it is for.
        label: what messages call the format.
        targets: what the images come with: "boxes", "masks" or "boxes and masks", or "" where the label tells.
    """

    format: str
    task: Task
    label: str
    targets: str = ""


CLASSES = Reading("classes", "classification", "class folders")
COCO = Reading("coco", "detection", "COCO", "boxes")
MASKS = Reading("masks", "segmentation", "images and masks")
VOC_BOXES = Reading("voc", "detection", "Pascal VOC", "boxes")
VOC_MASKS = Reading("voc", "segmentation", "Pascal VOC", "masks")
YOLO = Reading("yolo", "detection", "YOLO", "boxes")
FORMATS = ("classes", "coco", "masks", "voc", "yolo")


def choose_reading(source: Path, task: Task | None, data_format: str | None) -> Reading | None:
    """Return how a folder is read, or None where its files do not tell.

    Args:
        source: a folder, or the YAML file of a YOLO data set.
        task: of the model; None for any.
        data_format: one of `FORMATS`; None for any.

    Raises:
        DataError: there are several ways to read it, or it is for another task.
    """
    found = find_readings(source)
    if data_format is not None:
        known = (CLASSES, COCO, MASKS, VOC_BOXES, VOC_MASKS, YOLO)
        # A format that was asked for is read even if its files were not recognised, so that its reader reports why.
        found = [each for each in found if each.format == data_format] or [
            each for each in known if each.format == data_format and task in (None, each.task)
        ][:1]
    fitting = [each for each in found if task in (None, each.task)]
    if found and not fitting:
        head = DEFAULT_HEADS[found[0].task]
        raise DataError(
            f"{str(source)!r} holds {' and '.join(map(_describe, found))}, and a model for {task} was asked for; a "
            f"model for {found[0].task} has a head such as {head!r}"
        )
    if len(fitting) > 1:
        raise DataError(
            f"{str(source)!r} can be read as {' or as '.join(map(_describe, fitting))}",
            hint=Hint("choose with", _choices(fitting)),
        )
    return fitting[0] if fitting else None


def _describe(reading: Reading) -> str:
    return f"{reading.label} ({reading.targets})" if reading.targets else reading.label


def _choices(readings: Sequence[Reading]) -> str:
    """Return the settings that choose one of several readings."""
    heads = dict.fromkeys(f"head={DEFAULT_HEADS[each.task]!r}" for each in readings)
    formats = dict.fromkeys(f"format={each.format!r}" for each in readings)
    if len(heads) == len(readings):
        return " or ".join(heads)
    if len(formats) == len(readings):
        return " or ".join(formats)
    return f"{' or '.join(heads)}, and {' or '.join(formats)}"


def find_readings(source: Path) -> list[Reading]:
    """Return all ways to read a folder, or the YAML file of a YOLO data set."""
    if source.is_file():
        return [YOLO]
    readings = [
        *_coco_readings(source),
        *([VOC_BOXES] if any(b"<annotation" in path.read_bytes() for path in xml_files(source)) else []),
        *([VOC_MASKS] if (source / "SegmentationClass").is_dir() else []),
        *([YOLO] if yolo_files(source) or has_yolo_labels(source) else []),
    ]
    if any(map(_has_masks, _places(source))):
        readings.append(MASKS)
    if len(list(islice(_class_folders(source), 2))) > 1:
        readings.append(CLASSES)
    return readings


def _places(folder: Path) -> list[Path]:
    """Return a folder and its folder "train", if there is one."""
    return [folder, *(path for path in folders_in(folder) if part_name(path) == "train")]


def part_name(folder: Path) -> str:
    """Return what a folder's part is called, in lower case: "train" of "Train", or of Darknet's "obj_train_data"."""
    name = folder.name.lower()
    return name.removeprefix("obj_").removesuffix("_data") if name.startswith("obj_") else name


def _has_masks(folder: Path) -> bool:
    """Return whether a folder has "images" and "masks", or masks such as "0_mask.png" beside its images."""
    if child(folder, "images").is_dir():
        return child(folder, "masks").is_dir()
    return any(is_image_file(path) and MASK_NAME.fullmatch(path.stem) for path in folder.iterdir())


def _coco_readings(folder: Path) -> Iterator[Reading]:
    for path in (*_files(folder, ".json"), *_files(folder / "annotations", ".json"), *_files_of_parts(folder)):
        content = path.read_bytes()
        if all(key in content for key in COCO_KEYS):
            yield COCO._replace(targets="boxes and masks") if OUTLINES.search(content) else COCO
            return


def _files_of_parts(folder: Path) -> list[Path]:
    return [path for part in folders_in(folder) for path in _files(part, ".coco.json")]


def _files(folder: Path, ending: str) -> list[Path]:
    """Return the files in a folder that are not hidden and end so, in whatever case; nothing without the folder."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.lower().endswith(ending))
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())


def xml_files(folder: Path) -> Iterator[Path]:
    """Yield the XML files in a folder and its direct subfolders."""
    for place in (folder, *folders_in(folder)):
        yield from _files(place, ".xml")


def yolo_files(folder: Path) -> list[Path]:
    """Return the YAML files in a folder that name classes and images, as YOLO's "data.yaml" does."""
    return [path for ending in (".yaml", ".yml") for path in _files(folder, ending) if _is_yolo_file(path)]


def _is_yolo_file(path: Path) -> bool:
    content = path.read_bytes()
    return all(key.search(content) for key in YOLO_KEYS)


def has_yolo_labels(folder: Path) -> bool:
    """Return whether a folder, or its folder "train", has YOLO's label files: in "labels", or beside the images."""
    patterns = ("labels/*.txt", "labels/*/*.txt")
    places = [*_places(folder), *(_places(folder / "images") if (folder / "images").is_dir() else [])]
    return any(
        ((place / "images").is_dir() and any(map(any, map(place.glob, patterns)))) or has_labels_beside(place)
        for place in places
    )


def has_labels_beside(folder: Path) -> bool:
    """Return whether there are label files of YOLO's beside the images in a folder."""
    images = {path.stem for path in folder.iterdir() if is_image_file(path)}
    texts = (path for path in _files(folder, ".txt") if path.stem in images)
    return any(LABEL_LINE.match(path.read_bytes()) for path in islice(texts, LOOKED_AT))


def _class_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders that hold images and whose names no other format has."""
    place = next((place for place in reversed(_places(folder)) if folders_in(place)), folder)
    for path in folders_in(place):
        # Not all images are listed: there may be millions.
        if not NO_CLASSES.fullmatch(path.name) and has_images(path):
            yield path


def other_folders(folder: Path) -> list[str]:
    """Return the names of folders with images in a folder that are no classes, nor parts, such as "images"."""
    parts = {"train", "val", "valid", "validation", "test"}
    return [
        path.name
        for path in folders_in(folder)
        if NO_CLASSES.fullmatch(path.name) and part_name(path) not in parts and has_images(path)
    ]


def has_images(folder: Path) -> bool:
    """Return whether there is an image in a folder or below it."""
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if any(is_image_file(Path(name)) for name in names):
            return True
    return False
