"""Folders of images with annotations in Pascal VOC's format, for detection. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from featuretap.support.errors import DataError
from featuretap.support.image_files import is_image_file
from featuretap.workflows.datasets.boxed_images import AnnotatedImage, divided, gathered
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.parts import part_folders
from featuretap.workflows.datasets.problems import raise_problems
from featuretap.workflows.datasets.voc_file import read_voc

__all__ = ["holds_voc", "listed", "open_voc"]


class Place(NamedTuple):
    """Folders of images and of their annotations, which may be one, and the names that count, or None for all."""

    images: Path
    annotations: Path
    names: tuple[str, ...] | None = None


def holds_voc(folder: Path) -> bool:
    """Say whether a folder has annotations in Pascal VOC's format: in "Annotations" or beside images."""
    return any(any(folder.glob(pattern)) for pattern in ("*.[xX][mM][lL]", "*/*.[xX][mM][lL]"))


def open_voc(folder: Path, val_fraction: float, seed: int) -> DataSet:
    """Open VOC's own folders, or one with an .xml file beside every image, or parts "train" and "val" of that.

    Classes are in the order of their names. Without parts or lists of them a part is kept for validation.

    Raises:
        DataError: files are missing or cannot be used; all problems are counted, and the first are named.
    """
    places = _places(folder)
    problems: list[str] = []
    parts = [_read(place, problems) for place in places]
    raise_problems(problems, folder)
    for place, images in zip(places, parts, strict=True):
        if not any(image.boxes for image in images):
            raise DataError(f"the annotations in {str(place.annotations)!r} name no object")
    classes = tuple(sorted({name for images in parts for image in images for name in image.names}))
    if len(parts) == 1:
        parts = divided(parts[0], folder, val_fraction, seed)
    train, val = (gathered(images, classes) for images in parts)
    return DataSet("detection", classes, train, val)


def listed(file: Path) -> tuple[str, ...]:
    """Return the names in a list of images such as "ImageSets/Main/train.txt".

    Raises:
        DataError: it is no text, or names no image, or one twice.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is no text in UTF-8: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{str(file)!r} names no image")
    if len(set(names)) < len(names):
        raise DataError(f"{str(file)!r} names {next(name for name in names if names.count(name) > 1)!r} twice")
    return tuple(names)


def _places(folder: Path) -> list[Place]:
    if (folder / "Annotations").is_dir():
        images = folder / "JPEGImages"
        whole = Place(images if images.is_dir() else folder, folder / "Annotations")
        lists = [folder / "ImageSets" / "Main" / f"{part}.txt" for part in ("train", "val")]
        if lists[0].is_file():
            return [whole._replace(names=listed(file)) for file in lists if file.is_file()]
        return [whole]
    parts = part_folders(folder) or [folder]
    return [Place(part, part) for part in parts if part]


def _read(place: Place, problems: list[str]) -> list[AnnotatedImage]:
    annotations, images = _files(place.annotations, [".xml"]), _files(place.images)
    names = place.names or sorted({*annotations, *images})
    found = []
    for name in names:
        for kind, files, where in (("annotations", annotations, place.annotations), ("image", images, place.images)):
            if name not in files:
                problems.append(f"{name!r} has no {kind} in {where.name!r}")
            elif len(files[name]) > 1:
                problems.append(f"{' and '.join(repr(path.name) for path in files[name])} have one name")
        if name in annotations and name in images:
            found.append(read_voc(annotations[name][0], images[name][0], problems))
    return found


def _files(folder: Path, suffixes: Iterable[str] | None = None) -> dict[str, list[Path]]:
    """Return the files of these kinds (of images unless given) by their names without the ending."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        wanted = is_image_file(path) if suffixes is None else path.suffix.lower() in suffixes and path.name[0] != "."
        if wanted and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found
