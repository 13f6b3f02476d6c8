"""What predicts: a model that is called with NumPy arrays, without PyTorch or with it inside."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap import registry
from featuretap.specs.description import Description
from featuretap.specs.taps import Tap

DEFAULT_BACKBONE = "mobilenet_v2"
"""What commands take where neither a name nor a file is given."""

PRETRAINED: dict[str | None, bool | str] = {None: True, "default": True, "none": False}
"""What `--weights` stands for, apart from tags and files."""


@runtime_checkable
class Predictor(Protocol):
    """A session, or a module in a `ModulePredictor`."""

    @property
    def description(self) -> Description:
        """The description of the model."""

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Address → channels and stride of a bare backbone's maps."""

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an image as the model wants it, as a batch (1, C, H, W)."""

    def __call__(self, images: NDArray[np.float32]) -> Mapping[str, Any]:
        """Return name → a value for each of the images (N, C, H, W), or such a mapping for each of several heads.

        Classifiers give "logits" (K,), segmenters "out" (K, H', W'), backbones their maps (C, H', W'). Detectors give
        "boxes" (D, 4) in pixels of `images`, "scores" (D,), "labels" (D,), and "masks" (D, 1, H, W) where they have
        any, all of them sorted alike; only the first "num_detections" count where that is given.
        """


def task_of(description: Description) -> str:
    """Return "classification", "segmentation" or "detection", or "" for a model that names no classes."""
    return registry.default.head(description.head).task if description.head and description.num_classes else ""


def predicting_heads(description: Description) -> dict[str, Description]:
    """Return name → description of each head that names classes; that of a model with one head has an empty name."""
    heads = description.heads or {"": description}
    return {name: head for name, head in heads.items() if task_of(head)}
