"""Named data sets, read by torchvision and scikit-learn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featuretap.support.errors import DataError, FeaturetapError, ImageError
from featuretap.support.extras import check_extra
from featuretap.support.images import read_image
from featuretap.support.import_strings import load
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.named_sets import NamedSet
from featuretap.workflows.datasets.splits import split

FILES: Mapping[str, Callable[[Any, int], str | Path]] = {
    "Caltech101": lambda source, number: Path(
        source.root,
        "101_ObjectCategories",
        source.categories[source.y[number]],
        f"image_{source.index[number]:04d}.jpg",
    ),
    "Caltech256": lambda source, number: Path(
        source.root,
        "256_ObjectCategories",
        source.categories[source.y[number]],
        f"{source.y[number] + 1:03d}_{source.index[number]:04d}.jpg",
    ),
    "GTSRB": lambda source, number: source._samples[number][0],
    "OxfordIIITPet": lambda source, number: source._images[number],
}
"""torchvision class that opens files in any of Pillow's formats → function that returns the path of an image.

featuretap opens these files itself, to restrict the formats.
"""


class Digits:
    """scikit-learn's 1,797 grayscale images of 8×8 pixels, with the interface of a torchvision data set.

    Args:
        root: not used.
        download: not used.
    """

    def __init__(self, root: Path, download: bool = False) -> None:
        check_extra("the data set 'digits'", "train", ["sklearn"])
        from sklearn.datasets import load_digits

        loaded = load_digits()
        # The values of scikit-learn's images are from 0 to 16.
        self.pixels = np.round(loaded.images / 16 * 255).astype(np.uint8)
        self.targets: list[int] = loaded.target.tolist()

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), self.targets[index]


@dataclass(frozen=True, slots=True)
class _NamedSample:
    """Image `number` of the torchvision data set `source`. `title` names the data set in messages."""

    title: str
    source: Any
    number: int
    label: int
    transposed: bool

    @property
    def name(self) -> str:
        return f"{self.title} {self.number}"

    def read(self) -> tuple[Image.Image, int]:
        path_of = FILES.get(type(self.source).__name__)
        try:
            image = _load_image(path_of(self.source, self.number)) if path_of else self.source[self.number][0]
            image.load()
        except Exception as error:
            # Each data set reads images in its own way, so errors can be of any type.
            raise ImageError(f"{self.name} cannot be read: {_reason(error)}") from error
        return image.transpose(Image.Transpose.TRANSPOSE) if self.transposed else image, self.label

    def check(self) -> str:
        try:
            self.read()
        except ImageError as error:
            return str(error)
        return ""


def open_named(row: NamedSet, folder: Path, val_fraction: float, seed: int) -> DataSet:
    """Open a named data set, after downloading it if necessary.

    Args:
        row: the data set.
        folder: folder for downloads.
        val_fraction: fraction to hold out for validation, if the data set has no validation or test part.
        seed: seed of the split.

    Returns:
        The data set.
    """
    source = _read_part(row, row.train, folder)
    names = getattr(source, "classes", None) or getattr(source, "categories", None) or range(row.classes or 0)
    # Imagenette has several names per class.
    classes = tuple(name[0] if isinstance(name, tuple) else str(name) for name in names)
    if row.val is not None:
        train = _samples(row, source, f"{row.name} train", classes)
        val = _samples(row, _read_part(row, row.val, folder), f"{row.name} val", classes)
    else:
        samples = _samples(row, source, row.name, classes)
        numbers, labels = list(map(str, range(len(samples)))), [sample.label for sample in samples]
        divided = split(numbers, labels, val_fraction, seed)
        train, val = ([samples[index] for index in part] for part in divided)
    return DataSet("classification", classes, train, val, row.mirrors, held_out=row.val is None)


def _read_part(row: NamedSet, arguments: Mapping[str, Any], folder: Path) -> Any:
    """Return the torchvision data set of a part."""
    from featuretap.weights.downloads import offline

    factory = load(row.factory or f"torchvision.datasets:{row.name}")
    if "loader" in signature(factory).parameters:
        arguments = {**arguments, "loader": _load_image}
    by_hand = f"put its files into {str(folder / row.place)!r}, or use a folder of images"
    try:
        # Without download first: the files may have been put there by hand, and may not be downloadable.
        return factory(folder, **arguments, download=False)
    except FeaturetapError:
        raise
    except Exception as error:
        # torchvision does not catch the errors of the libraries that it calls, so they can be of any type.
        if offline():
            raise DataError(
                f"cannot read the data set {row.name!r} in {str(folder)!r}: {_reason(error)}; "
                f"FEATURETAP_OFFLINE forbids downloads, so {by_hand}"
            ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return factory(folder, **arguments, download=True)
    except Exception as error:
        raise DataError(f"cannot download the data set {row.name!r}: {_reason(error)}; {by_hand}") from error


def _load_image(path: str | Path) -> Image.Image:
    return read_image(Path(path))


def _samples(row: NamedSet, source: Any, title: str, classes: Sequence[str]) -> list[_NamedSample]:
    labels = _labels(source)
    for number, label in enumerate(labels):
        if not 0 <= label < len(classes):
            raise DataError(
                f"{title} {number} has the class {label}, but the {len(classes)} classes of {row.name!r} are numbered "
                f"from 0 to {len(classes) - 1}"
            )
    files = getattr(source, "_image_files", None)
    # Sort by file, since SUN397 lists files in the order of the file system.
    numbers = sorted(range(len(labels)), key=lambda number: str(files[number])) if files else range(len(labels))
    return [_NamedSample(title, source, number, labels[number], row.transposed) for number in numbers]


def _labels(source: Any) -> list[int]:
    """Return the class of each image, from the attribute in which the torchvision class stores it."""
    found = next(
        (getattr(source, name) for name in ("targets", "labels", "_labels", "y") if hasattr(source, name)), None
    )
    if found is None:
        found = [label for _, label in source._samples]
    array = np.asarray(found)
    # QMNIST has further columns after the class.
    return [int(label) for label in (array[:, 0] if array.ndim == 2 else array)]


def _reason(error: Exception) -> str:
    # Drop torchvision's advice, which names its own arguments.
    text = " ".join(str(error).split()).partition(" You can use download=True")[0]
    return text.rstrip(".") or type(error).__name__
