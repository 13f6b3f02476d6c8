"""The named data sets, and what their classes call their parts. Data, no code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class NamedSet:
    """A data set that is known by name.

    Args:
        name: what people call it, torchvision's class for it.
        train: arguments that give the training part.
        val: arguments that give the validation part, which is the test set where a set has no other; None where it has
            no parts.
        place: where its files are, in the folder of data sets.
        classes: how many there are, for a set whose class does not name them; their names are the numbers from 0.
        mirrors: whether a mirrored image is still of its class.
        transposed: whether its images lie on their side, rows for columns.
        factory: its class as an import string, for a set that is not torchvision's.
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
"""Every named data set, by its name in lower case."""
