"""What the classes of a model are called. No torch; torchvision's lists are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from featuretap.specs.description import Description

__all__ = ["class_names", "name_of"]

LABEL_SETS = {
    "imagenet1k": ("torchvision.models", "MobileNet_V2_Weights"),
    "coco": ("torchvision.models.detection", "SSDLite320_MobileNet_V3_Large_Weights"),
    "voc": ("torchvision.models.segmentation", "LRASPP_MobileNet_V3_Large_Weights"),
}
"""Label sets → module and name of weights of torchvision's, which ships the names with every set of them."""


def class_names(description: Description) -> tuple[str, ...]:
    """Return the name of every class of a model: the weights' own, those of their label set, or "class 7"."""
    count, classes = description.num_classes or 0, description.classes
    if isinstance(classes, str):
        classes = _label_set(classes)
    # A label set's name alone does not say that the model has as many classes.
    return tuple(name_of(label, classes if len(classes) == count else ()) for label in range(count))


def name_of(label: int, classes: Sequence[str]) -> str:
    """Return the name of a class, or "class 7" where there is none."""
    return (classes[label] if 0 <= label < len(classes) else "") or f"class {label}"


def _label_set(name: str) -> tuple[str, ...]:
    from importlib import import_module

    if name not in LABEL_SETS:
        return ()
    module, weights = LABEL_SETS[name]
    return tuple(getattr(import_module(module), weights).DEFAULT.meta["categories"])
