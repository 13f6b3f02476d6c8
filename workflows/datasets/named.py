"""Opening named data sets, which torchvision reads and downloads. No torch at module level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featuretap.support.errors import DataError, FeaturetapError, ImageError
from featuretap.support.import_strings import load
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.named_sets import NamedSet
from featuretap.workflows.datasets.splitting import split

__all__ = ["NamedSamples", "open_named"]


@dataclass(frozen=True)
class NamedSamples:
    """Images of a named data set.

    Args:
        title: what the images are called, before their numbers.
        source: torchvision's object.
        numbers: which images of it these are.
        labels: class of each.
        transposed: whether they lie on their side.
    """

    title: str
    source: Any
    numbers: Sequence[int]
    labels: Sequence[int]
    transposed: bool

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            image, _ = self.source[self.numbers[index]]
            image.load()
        except Exception as error:
            # Every set reads in a way of its own.
            raise ImageError(f"{self.name(index)} cannot be read: {_reason(error)}") from error
        return image.transpose(Image.Transpose.TRANSPOSE) if self.transposed else image, self.labels[index]

    def name(self, index: int) -> str:
        """Return the set's name, the part's, and the number of the image in it."""
        return f"{self.title} {self.numbers[index]}"

    def check(self, index: int) -> str:
        """Return what is wrong with an image, or ""."""
        try:
            self[index]
        except ImageError as error:
            return str(error)
        return ""


def open_named(row: NamedSet, folder: Path, val_fraction: float, seed: int) -> DataSet:
    """Open a named data set, downloaded first where it is not there yet.

    Args:
        row: the set.
        folder: where its files are or will be.
        val_fraction: share that is kept for validation, where the set has no parts of its own.
        seed: of that choice.

    Raises:
        DataError: it can be neither read nor downloaded, or its labels are no classes.
        MissingExtraError: what it needs is not installed.
    """
    learned = _part(row, row.train, folder)
    classes = _classes(row, learned)
    if row.val is not None:
        judged = _part(row, row.val, folder)
        train = _samples(row, learned, f"{row.name} train", classes)
        return DataSet("classification", classes, train, _samples(row, judged, f"{row.name} val", classes), row.mirrors)
    whole = _samples(row, learned, row.name, classes)
    train, val = (
        NamedSamples(
            whole.title,
            whole.source,
            [whole.numbers[index] for index in part],
            [whole.labels[index] for index in part],
            whole.transposed,
        )
        for part in split(list(map(str, range(len(whole)))), whole.labels, val_fraction, seed, row.name)
    )
    return DataSet("classification", classes, train, val, row.mirrors)


def _part(row: NamedSet, arguments: Mapping[str, Any], folder: Path) -> Any:
    from featuretap.weights.downloads import offline

    make = load(row.factory or f"torchvision.datasets:{row.name}")
    by_hand = f"put its files into {str(folder / row.place)!r}, or give a folder of images"
    try:
        # What was put there by hand may be no longer offered, or be here without a network.
        return make(folder, **arguments, download=False)
    except FeaturetapError:
        raise
    except Exception as error:
        # torchvision lets through whatever the libraries below it raise.
        if offline():
            raise DataError(
                f"cannot read the data set {row.name!r} in {str(folder)!r}: {_reason(error)}; "
                f"FEATURETAP_OFFLINE forbids downloads, so {by_hand}"
            ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return make(folder, **arguments, download=True)
    except Exception as error:
        raise DataError(f"cannot download the data set {row.name!r}: {_reason(error)}; {by_hand}") from error


def _samples(row: NamedSet, part: Any, title: str, classes: Sequence[str]) -> NamedSamples:
    labels = _labels(part)
    for number, label in enumerate(labels):
        if not 0 <= label < len(classes):
            raise DataError(
                f"{title} {number} is of class {label}, but {row.name!r} has {len(classes)} classes, from 0 to "
                f"{len(classes) - 1}"
            )
    files = getattr(part, "_image_files", None)
    # SUN397 lists its files as the disk has them.
    numbers = sorted(range(len(labels)), key=lambda number: str(files[number])) if files else range(len(labels))
    return NamedSamples(title, part, numbers, [labels[number] for number in numbers], row.transposed)


def _labels(part: Any) -> list[int]:
    """Return the class of every image, which torchvision's classes keep under various names."""
    found = next((getattr(part, name) for name in ("targets", "labels", "_labels", "y") if hasattr(part, name)), None)
    if found is None:
        found = [label for _, label in part._samples]
    array = np.asarray(found)
    # QMNIST has more to say of every image, behind its class.
    return [int(label) for label in (array[:, 0] if array.ndim == 2 else array)]


def _classes(row: NamedSet, part: Any) -> tuple[str, ...]:
    names = getattr(part, "classes", None) or getattr(part, "categories", None)
    if names is None:
        names = range(row.classes or 0)
    # Imagenette's classes have several names each.
    return tuple(name[0] if isinstance(name, tuple) else str(name) for name in names)


def _reason(error: Exception) -> str:
    # torchvision's own advice is not for users of ours.
    text = " ".join(str(error).split()).partition(" You can use download=True")[0]
    return text.rstrip(".") or type(error).__name__
