"""Class names of a model.

The files in `label_sets/` have one name per line. The names are those in the metadata of torchvision's weights.
"person" is for detectors that only detect people.
"""

from collections.abc import Sequence
from pathlib import Path

from featuretap.specs.description import Description

LABEL_SETS = ("coco", "imagenet1k", "person", "voc")
"""Label sets that ship with the package: torchvision's detectors, classifiers and segmenters, and person detectors."""


def class_names(description: Description) -> tuple[str, ...]:
    """Return one name per class of a model.

    Args:
        description: description of the model.

    Returns:
        The names stored with the weights, or those of the weights' label set. A class without a name is called "class
        7".
    """
    count, classes = description.num_classes or 0, description.classes
    if isinstance(classes, str):
        classes = _read_label_set(classes) if classes in LABEL_SETS else ()
    # A model can record a label set and still have another number of classes.
    return tuple(name_of(label, classes if len(classes) == count else ()) for label in range(count))


def name_of(label: int, classes: Sequence[str]) -> str:
    """Return the name of class `label` in `classes`, or "class 7" if it has no name."""
    return (classes[label] if 0 <= label < len(classes) else "") or f"class {label}"


def _read_label_set(name: str) -> tuple[str, ...]:
    return tuple((Path(__file__).parent / "label_sets" / f"{name}.txt").read_text(encoding="utf-8").splitlines())
