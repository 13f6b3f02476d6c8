"""Folders of images with annotations in COCO's format, for detection. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featuretap.support.errors import DataError
from featuretap.support.extras import check_extra
from featuretap.workflows.datasets.boxed_images import divided, gathered
from featuretap.workflows.datasets.coco_file import read_coco
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.parts import part_folders

__all__ = ["open_coco"]

IN_PART = "_annotations.coco.json"
"""Name of the file in a part's folder, as Roboflow exports it."""


def open_coco(folder: Path, val_fraction: float, seed: int, masks: bool) -> DataSet:
    """Open a folder with a file of annotations for each part, or with one, of whose images some are for validation.

    Classes are in the order of the ids of their categories, which need not be consecutive. Images without objects stay.

    Raises:
        DataError: there is no such file or not the right number of them, or one of them cannot be used.
        MissingExtraError: masks are wanted, and what reads them is not installed.
    """
    if masks:
        check_extra("reading masks", "train", ["faster_coco_eval"])
    train_file, val_file = _files(folder)
    train = read_coco(train_file, _image_folders(folder, train_file, "train"), masks)
    if val_file is None:
        parts = divided(train.images, folder, val_fraction, seed)
        learned, judged = (gathered(images, train.classes) for images in parts)
        return DataSet("detection", train.classes, learned, judged)
    val = read_coco(val_file, _image_folders(folder, val_file, "val"), masks)
    unknown = [name for name in val.classes if name not in train.classes]
    if unknown:
        raise DataError(
            f"{str(val_file)!r} has categories that {str(train_file)!r} has not: {', '.join(map(repr, unknown))}; "
            "what is to be recognised has to be learned"
        )
    return DataSet(
        "detection", train.classes, gathered(train.images, train.classes), gathered(val.images, train.classes)
    )


def _files(folder: Path) -> tuple[Path, Path | None]:
    parts = part_folders(folder) if any(folder.glob(f"*/{IN_PART}")) else None
    if parts:
        return parts.train / IN_PART, parts.val / IN_PART if parts.val else None
    train, val = _of_part(folder, "train"), _of_part(folder, "val")
    if train:
        return train, val
    if val:
        raise DataError(
            f"{str(folder)!r} has {val.name!r} but no annotations to learn from, such as 'instances_train.json'"
        )
    found = [*_json_in(folder), *_json_in(folder / "annotations")]
    if len(found) != 1:
        there = f"is {', '.join(repr(path.name) for path in found)}" if found else "is no JSON file"
        raise DataError(
            f"{str(folder)!r} has no annotations of its images: there {there}; give one file in COCO's format, or "
            "'annotations/instances_train.json' and 'annotations/instances_val.json', or Pascal VOC's folders"
        )
    return found[0], None


def _of_part(folder: Path, part: str) -> Path | None:
    """Return the file of a part: "instances_train2017.json", as COCO has it, or else "train.json"."""
    inside = [*_json_in(folder / "annotations"), *_json_in(folder)]
    for beginning in (f"instances_{part}", part):
        found = [path for path in inside if path.name.lower().startswith(beginning)]
        if len(found) > 1:
            names = " and ".join(repr(path.name) for path in found)
            raise DataError(f"{str(folder)!r} has {names}; keep the one that is for {part!r}")
        if found:
            return found[0]
    return None


def _json_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json" and not path.name.startswith("."))


def _image_folders(folder: Path, file: Path, part: str) -> Sequence[Path]:
    if file.name == IN_PART:
        return [file.parent]
    name = file.stem.removeprefix("instances_")
    names = dict.fromkeys([name, part, *(["valid"] if part == "val" else [])])
    return [*(root / name for root in (folder, folder / "images") for name in names), folder / "images", folder]
