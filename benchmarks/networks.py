"""MobileNetV3-Large in the three libraries, as their users would build it."""

from collections.abc import Callable
from typing import Any

import timm
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from featuretap import registry

__all__ = ["CLASSIFIERS", "FEATURES", "NAME"]

NAME = "mobilenet_v3_large"

LAST = {f"features.{index}": f"C{level}" for level, index in enumerate((1, 3, 6, 12, 16), start=1)}
"""The last map of every stride in torchvision's network, by its own names."""


def _timm(**options: Any) -> nn.Module:
    return timm.create_model("mobilenetv3_large_100", features_only=True, **options)


def _torchvision() -> nn.Module:
    return create_feature_extractor(torchvision.models.mobilenet_v3_large(), LAST)


def _featuretap() -> nn.Module:
    return registry.build(NAME, features_only=True)


FEATURES: dict[str, Callable[[], nn.Module]] = {"timm": _timm, "torchvision": _torchvision, "featuretap": _featuretap}
"""Library → what builds the network that returns C1 to C5, with fresh weights."""

CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: timm.create_model("mobilenetv3_large_100"),
    "torchvision": lambda: torchvision.models.mobilenet_v3_large(),
    "featuretap": lambda: registry.build(NAME),
}
"""Library → what builds the classifier of 1,000 classes, with fresh weights."""
