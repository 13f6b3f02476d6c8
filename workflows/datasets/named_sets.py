"""Table of the named data sets, with the arguments that select their parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class NamedSet:
    """A data set that can be opened by name.

    Args:
        name: name of the data set, which is its class in torchvision.
        train: arguments that select the training part.
        val: arguments that select the validation part, or the test part if there is no other; None without parts.
        place: subfolder of its files in the download folder.
        classes: number of classes, for data sets without class names; the numbers from 0 become the names.
        mirrors: whether a mirrored image keeps its class.
        transposed: whether rows and columns of the images are swapped.
        factory: import string of its class, for data sets outside torchvision.
    """

    name: str
    train: Mapping[str, Any] = field(default_factory=dict)
    val: Mapping[str, Any] | None = None
    place: str = ""
    classes: int | None = None
    mirrors: bool = True
    transposed: bool = False
    factory: str = ""


IS_TRAIN, IS_TEST = {"train": True}, {"train": False}
BALANCED = {"split": "balanced"}
TRAIN, TRAINVAL, VAL, TEST = ({"split": part} for part in ("train", "trainval", "val", "test"))

NAMED_SETS: Mapping[str, NamedSet] = MappingProxyType(
    {
        row.name.lower(): row
        for row in (
            NamedSet("digits", classes=10, mirrors=False, factory="featuretap.workflows.datasets.named:Digits"),
            NamedSet("Caltech101", place="caltech101"),
            NamedSet("Caltech256", place="caltech256"),
            NamedSet("CIFAR10", IS_TRAIN, IS_TEST, "cifar-10-batches-py"),
            NamedSet("CIFAR100", IS_TRAIN, IS_TEST, "cifar-100-python"),
            NamedSet("Country211", TRAIN, {"split": "valid"}, "country211"),
            NamedSet("DTD", TRAIN, VAL, "dtd"),
            NamedSet("EMNIST", BALANCED | IS_TRAIN, BALANCED | IS_TEST, "EMNIST/raw", mirrors=False, transposed=True),
            NamedSet("EuroSAT", place="eurosat"),
            NamedSet("FashionMNIST", IS_TRAIN, IS_TEST, "FashionMNIST/raw"),
            NamedSet("FGVCAircraft", TRAIN, VAL, "fgvc-aircraft-2013b"),
            NamedSet("Flowers102", TRAIN, VAL, "flowers-102"),
            NamedSet("Food101", TRAIN, TEST, "food-101"),
            NamedSet("GTSRB", TRAIN, TEST, "gtsrb", classes=43, mirrors=False),
            NamedSet("Imagenette", TRAIN, VAL, "imagenette2"),
            NamedSet("KMNIST", IS_TRAIN, IS_TEST, "KMNIST/raw", mirrors=False),
            NamedSet("MNIST", IS_TRAIN, IS_TEST, "MNIST/raw", mirrors=False),
            NamedSet("OxfordIIITPet", TRAINVAL, TEST, "oxford-iiit-pet"),
            NamedSet("QMNIST", IS_TRAIN, IS_TEST, "QMNIST/raw", mirrors=False),
            NamedSet("RenderedSST2", TRAIN, VAL, "rendered-sst2", mirrors=False),
            NamedSet("SEMEION", classes=10, mirrors=False),
            NamedSet("StanfordCars", TRAIN, TEST, "stanford_cars"),
            NamedSet("STL10", TRAIN, TEST, "stl10_binary", classes=10),
            NamedSet("SUN397", place="SUN397"),
            NamedSet("SVHN", TRAIN, TEST, classes=10, mirrors=False),
            NamedSet("USPS", IS_TRAIN, IS_TEST, classes=10, mirrors=False),
        )
    }
)
"""Named data sets by name in lower case."""
