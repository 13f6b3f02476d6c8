"""The predictor protocol: a model that takes NumPy arrays, with or without PyTorch."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap import registry
from featuretap.specs.description import Description
from featuretap.specs.taps import Tap

DEFAULT_BACKBONE = "mobilenet_v2"
"""Backbone of commands if neither a name nor a file is given."""

PRETRAINED: dict[str | None, bool | str] = {None: True, "default": True, "none": False}
"""Values of `--weights` other than tags and files."""


@runtime_checkable
class Predictor(Protocol):
    """A session, or a module wrapped in a `ModulePredictor`."""

    @property
    def description(self) -> Description:
        """The model's description."""

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Address → channels and stride of a bare backbone's maps."""

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """Preprocess an image into a batch of one (1, C, H, W)."""

    def __call__(self, images: NDArray[np.float32]) -> Mapping[str, Any]:
        """Return output → values for each image. Models with several heads return head → output → values.

        Classifiers return "logits" (K,), segmenters "out" (K, H', W') and backbones their maps (C, H', W'). Detectors
        return "boxes" (D, 4) in pixels of `images`, "scores" (D,), "labels" (D,) and optionally "masks" (D, 1, H, W),
        all in the same order. If there is an output "num_detections", only that many entries are valid.

        Args:
            images: preprocessed images (N, C, H, W).

        Returns:
            The outputs.
        """


def task_of(description: Description) -> str:
    """Return "classification", "segmentation" or "detection", or "" for a model that predicts no classes."""
    return registry.default.head(description.head).task if description.head and description.num_classes else ""


def predicting_heads(description: Description) -> dict[str, Description]:
    """Return name → description of the heads that predict classes. A model's only head has an empty name."""
    heads = description.heads or {"": description}
    return {name: head for name, head in heads.items() if task_of(head)}
