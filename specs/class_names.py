"""Names of the classes of a model.

The names of the label sets in `label_sets/`, one a line, are those in the metadata of torchvision's weights.
"person" is for detectors that find people only.
"""

from collections.abc import Sequence
from pathlib import Path

from featuretap.specs.description import Description

LABEL_SETS = ("coco", "imagenet1k", "person", "voc")
"""Label sets whose names come with the package: of torchvision's detectors, classifiers and segmenters, and
of detectors of people."""


def class_names(description: Description) -> tuple[str, ...]:
    """Return the name of every class of a model: the weights' own, those of their label set, or "class 7"."""
    count, classes = description.num_classes or 0, description.classes
    if isinstance(classes, str):
        classes = _read_label_set(classes) if classes in LABEL_SETS else ()
    # A label set's name alone does not say that the model has as many classes.
    return tuple(name_of(label, classes if len(classes) == count else ()) for label in range(count))


def name_of(label: int, classes: Sequence[str]) -> str:
    """Return the name of a class, or "class 7" where there is none."""
    return (classes[label] if 0 <= label < len(classes) else "") or f"class {label}"


def _read_label_set(name: str) -> tuple[str, ...]:
    return tuple((Path(__file__).parent / "label_sets" / f"{name}.txt").read_text(encoding="utf-8").splitlines())
