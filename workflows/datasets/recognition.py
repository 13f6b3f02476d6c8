"""Detection of the format of a folder, from the names and contents of its files."""

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
"""Task → default head for training: the smallest head designed for mobile backbones."""

COCO_KEYS = (b'"images"', b'"annotations"', b'"categories"')
OUTLINES = re.compile(rb'"segmentation"\s*:\s*(\[\s*\[|\{)')
MASK_NAME = re.compile(r"(.*[ ._-])?masks?([ ._-].*)?", re.IGNORECASE)
YOLO_KEYS = (re.compile(rb"^names\s*:", re.MULTILINE), re.compile(rb"^(train|val)\s*:", re.MULTILINE))

NO_CLASSES = re.compile(
    r"(images|masks|labels|annotations|jpegimages|imagesets|segmentationclass|segmentationobject"
    r"|(train|val|valid|validation|test)[0-9]*|obj_[a-z]+_data)",
    re.IGNORECASE,
)
"""Names of folders in other formats. They are classes only if no other format matches."""


LABEL_LINE = re.compile(rb"\s*\d+(\s+-?\d*\.?\d+(e[-+]?\d+)?){4,}\s*(\n|$)", re.IGNORECASE)
"""First line of a non-empty YOLO label file."""

LOOKED_AT = 100
"""Maximum number of text files to search for labels; the files of images without objects are empty."""


class Reading(NamedTuple):
    """A format in which a folder can be read.

    Attributes:
        format: value of the setting `format`.
        task: task of the data.
        label: name of the format in messages.
        targets: annotations of the images: "boxes", "masks" or "boxes and masks"; "" if the label makes them clear.
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
    """Return the format of a folder, or None if no format matches.

    Args:
        source: a folder, or the YAML file of a YOLO data set.
        task: task of the model; None for any.
        data_format: one of `FORMATS`; None for any.

    Returns:
        The format.

    Raises:
        DataError: several formats match, or the data is for another task.
    """
    found = find_readings(source)
    if data_format is not None:
        known = (CLASSES, COCO, MASKS, VOC_BOXES, VOC_MASKS, YOLO)
        # Use a requested format even if its files were not detected, so that its reader reports the reason.
        found = [each for each in found if each.format == data_format] or [
            each for each in known if each.format == data_format and task in (None, each.task)
        ][:1]
    fitting = [each for each in found if task in (None, each.task)]
    if found and not fitting:
        head = DEFAULT_HEADS[found[0].task]
        raise DataError(
            f"{str(source)!r} contains {' and '.join(map(_describe, found))}, but the model is for {task}; choose a "
            f"head for {found[0].task}, such as {head!r}"
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
    """Return the settings that select one of several formats."""
    heads = dict.fromkeys(f"head={DEFAULT_HEADS[each.task]!r}" for each in readings)
    formats = dict.fromkeys(f"format={each.format!r}" for each in readings)
    if len(heads) == len(readings):
        return " or ".join(heads)
    if len(formats) == len(readings):
        return " or ".join(formats)
    return f"{' or '.join(heads)}, and {' or '.join(formats)}"


def find_readings(source: Path) -> list[Reading]:
    """Return all formats that match a folder, or the YAML file of a YOLO data set."""
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
    """Return a folder and, if it exists, its subfolder "train"."""
    return [folder, *(path for path in folders_in(folder) if part_name(path) == "train")]


def part_name(folder: Path) -> str:
    """Return the name of a folder's part in lower case, such as "train" for "Train" or Darknet's "obj_train_data"."""
    name = folder.name.lower()
    return name.removeprefix("obj_").removesuffix("_data") if name.startswith("obj_") else name


def _has_masks(folder: Path) -> bool:
    """Return whether a folder has subfolders "images" and "masks", or masks such as "0_mask.png" next to images."""
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
    """Return the visible files in a folder with an ending, in upper or lower case. The folder may be missing."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.lower().endswith(ending))
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())


def xml_files(folder: Path) -> Iterator[Path]:
    """Yield the XML files in a folder and its direct subfolders."""
    for place in (folder, *folders_in(folder)):
        yield from _files(place, ".xml")


def yolo_files(folder: Path) -> list[Path]:
    """Return the YAML files in a folder that define classes and images, such as YOLO's "data.yaml"."""
    return [path for ending in (".yaml", ".yml") for path in _files(folder, ending) if _is_yolo_file(path)]


def _is_yolo_file(path: Path) -> bool:
    content = path.read_bytes()
    return all(key.search(content) for key in YOLO_KEYS)


def has_yolo_labels(folder: Path) -> bool:
    """Return whether a folder, or its subfolder "train", has YOLO label files, in "labels" or next to images."""
    patterns = ("labels/*.txt", "labels/*/*.txt")
    places = [*_places(folder), *(_places(folder / "images") if (folder / "images").is_dir() else [])]
    return any(
        ((place / "images").is_dir() and any(map(any, map(place.glob, patterns)))) or has_labels_beside(place)
        for place in places
    )


def has_labels_beside(folder: Path) -> bool:
    """Return whether there are YOLO label files next to the images in a folder."""
    images = {path.stem for path in folder.iterdir() if is_image_file(path)}
    texts = (path for path in _files(folder, ".txt") if path.stem in images)
    return any(LABEL_LINE.match(path.read_bytes()) for path in islice(texts, LOOKED_AT))


def _class_folders(folder: Path) -> Iterator[Path]:
    """Yield the subfolders with images whose names do not belong to another format."""
    place = next((place for place in reversed(_places(folder)) if folders_in(place)), folder)
    for path in folders_in(place):
        # Do not list all images: there may be millions.
        if not NO_CLASSES.fullmatch(path.name) and has_images(path):
            yield path


def other_folders(folder: Path) -> list[str]:
    """Return the names of subfolders with images that are neither classes nor parts, such as "images"."""
    parts = {"train", "val", "valid", "validation", "test"}
    return [
        path.name
        for path in folders_in(folder)
        if NO_CLASSES.fullmatch(path.name) and part_name(path) not in parts and has_images(path)
    ]


def has_images(folder: Path) -> bool:
    """Return whether a folder or its subfolders contain an image."""
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if any(is_image_file(Path(name)) for name in names):
            return True
    return False
