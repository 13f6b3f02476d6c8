"""Names of the classes of a model; torchvision is imported on first use of its lists."""

from collections.abc import Sequence
from importlib import import_module

from featuretap.specs.description import Description

LABEL_SETS = {
    "imagenet1k": ("torchvision.models", "MobileNet_V2_Weights"),
    "coco": ("torchvision.models.detection", "SSDLite320_MobileNet_V3_Large_Weights"),
    "voc": ("torchvision.models.segmentation", "LRASPP_MobileNet_V3_Large_Weights"),
}
"""Label set → module and class of torchvision's weights, which come with the names."""


def class_names(description: Description) -> tuple[str, ...]:
    """Return the name of every class of a model: the weights' own, those of their label set, or "class 7"."""
    count, classes = description.num_classes or 0, description.classes
    if isinstance(classes, str):
        module, weights = LABEL_SETS.get(classes, ("", ""))
        classes = tuple(getattr(import_module(module), weights).DEFAULT.meta["categories"]) if module else ()
    # A label set's name alone does not say that the model has as many classes.
    return tuple(name_of(label, classes if len(classes) == count else ()) for label in range(count))


def name_of(label: int, classes: Sequence[str]) -> str:
    """Return the name of a class, or "class 7" where there is none."""
    return (classes[label] if 0 <= label < len(classes) else "") or f"class {label}"
