"""MobileNetV3-Large in the three libraries, built as their users would."""

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
"""Layers of torchvision's model that return the last map at each stride → level."""


def _timm(**options: Any) -> nn.Module:
    return timm.create_model("mobilenetv3_large_100", features_only=True, **options)


def _torchvision() -> nn.Module:
    return create_feature_extractor(torchvision.models.mobilenet_v3_large(), LAST)


def _featuretap() -> nn.Module:
    return registry.build(NAME, features_only=True)


FEATURES: dict[str, Callable[[], nn.Module]] = {"timm": _timm, "torchvision": _torchvision, "featuretap": _featuretap}
"""Library → function that builds the backbone (C1 to C5), randomly initialized."""

CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: timm.create_model("mobilenetv3_large_100"),
    "torchvision": lambda: torchvision.models.mobilenet_v3_large(),
    "featuretap": lambda: registry.build(NAME),
}
"""Library → function that builds the classifier of 1,000 classes, randomly initialized."""
