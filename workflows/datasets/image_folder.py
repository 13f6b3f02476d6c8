"""Classification data sets with a folder of images per class."""

import logging
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from featuretap.support.errors import DataError
from featuretap.support.image_files import SUFFIXES, folders_in, images_below, is_image_file
from featuretap.support.images import read_image
from featuretap.support.text import first_few
from featuretap.workflows.datasets.data_set import DataSet, image_problem
from featuretap.workflows.datasets.recognition import NO_CLASSES, has_images
from featuretap.workflows.datasets.splits import check_classes, part_folders, split_files

logger = logging.getLogger("featuretap")


@dataclass(frozen=True, slots=True)
class _ImageFile:
    """An image file of one class."""

    name: str
    label: int

    def read(self) -> tuple[Image.Image, int]:
        return read_image(Path(self.name)), self.label

    def check(self) -> str:
        return image_problem(self.name)


def open_image_folder(
    folder: Path, val_fraction: float, seed: int, *, complete: bool = True, mixed: bool = False
) -> DataSet:
    """Open a folder of class folders, or a folder with parts "train" and "val" that contain class folders.

    Classes are sorted by name, as in torchvision. Subfolders belong to their class. Classes may be missing in "val".

    Args:
        folder: the folder.
        val_fraction: fraction to hold out for validation, if there are no parts.
        seed: seed of the split.
        complete: whether the data is for training. Data for evaluation may have missing classes, or a single one.
        mixed: whether the folder also matches another format, whose folders are not classes.

    Returns:
        The data set.

    Raises:
        DataError: there are no images, or images next to the class folders; or, in complete data, fewer than two
            classes, a class folder without images, or validation classes without training images.
    """
    parts = part_folders(folder)
    if parts and not folders_in(parts[0]) and (len(parts) == 1 or mixed):
        # "train" is a class, such as next to "bus" and "car", or contains images of another format.
        parts = []
    if parts:
        _report_beside(folder, parts[0])
    train_folder, *val_folder = parts or [folder]
    train = _images_by_class(train_folder, complete, mixed)
    if len(train) == 1 and complete:
        raise DataError(
            f"{str(train_folder)!r} has only the class {next(iter(train))!r}; classification needs at least two"
        )
    val = _images_by_class(val_folder[0], complete, mixed) if val_folder else {}
    if complete and val_folder:
        check_classes(list(val), list(train), val_folder[0], train_folder, "classes")
    classes = tuple(sorted({*train, *val}))
    files = _samples(train, classes)
    if val_folder:
        return DataSet("classification", classes, files, _samples(val, classes))
    labels = [file.label for file in files]
    train_part, val_part = split_files(files, train_folder, labels, val_fraction, seed)
    return DataSet("classification", classes, train_part, val_part, held_out=True)


def _report_beside(folder: Path, train: Path) -> None:
    """Log which folders with images are not used, since they are next to the folder "train"."""
    beside = [path.name for path in folders_in(folder) if not NO_CLASSES.fullmatch(path.name) and has_images(path)]
    if beside:
        counted = "1 folder" if len(beside) == 1 else f"{len(beside)} folders"
        names = first_few(list(map(repr, beside)), 5)
        logger.warning("skipped %s with images next to %r in %r: %s", counted, train.name, str(folder), names)


def _samples(images: dict[str, list[Path]], classes: tuple[str, ...]) -> list[_ImageFile]:
    labels = {name: label for label, name in enumerate(classes)}
    return [_ImageFile(str(path), labels[name]) for name, paths in images.items() for path in paths]


def _images_by_class(folder: Path, complete: bool, mixed: bool) -> dict[str, list[Path]]:
    """Return the images of each non-empty class folder by name. In complete data, an empty folder is an error."""
    classes = [path for path in folders_in(folder) if not (mixed and NO_CLASSES.fullmatch(path.name))]
    loose = sorted(path for path in folder.iterdir() if is_image_file(path) and not path.is_dir())
    if not classes:
        there = "contains images but no class folders" if loose else "contains no images"
        example = str(folder / "cat")
        raise DataError(f"{str(folder)!r} {there}; create a folder of images per class, such as {example!r}")
    if loose:
        counted = "1 image is" if len(loose) == 1 else f"{len(loose)} images are"
        raise DataError(
            f"{counted} next to the class folders of {str(folder)!r}, such as {loose[0].name!r}; move each image into "
            "a class folder, or out of the data set"
        )
    images = {path.name: images_below(path) for path in classes}
    empty = [name for name, paths in images.items() if not paths]
    if len(empty) == len(classes):
        raise DataError(f"{str(folder)!r} contains no images; supported suffixes are {', '.join(sorted(SUFFIXES))}")
    if empty and complete:
        raise DataError(
            f"{str(folder)!r} has class folders without images: {', '.join(map(repr, empty))}; add images, or remove "
            "the folders"
        )
    return {name: paths for name, paths in images.items() if paths}
