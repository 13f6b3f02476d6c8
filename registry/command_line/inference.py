"""Running a model on one picture, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from featuretap import registry
from featuretap.registry.description import Description
from featuretap.registry.errors import OptionError
from featuretap.registry.image_transforms import normalised
from featuretap.registry.images import plain

__all__ = ["best_classes", "feature_maps"]

SHORTER_SIDE = 224
LONGEST = 4

Maps = dict[str, NDArray[np.float32]]


def feature_maps(
    picture: Image.Image,
    model: str | None,
    weights: str | None,
    taps: tuple[str, ...] | None,
    size: tuple[int, int] | None,
) -> tuple[Image.Image, Maps, dict[str, int], str]:
    """Return the picture as the model saw it, its maps (C, H, W), their strides, and model and weights in words.

    The whole picture is used, not a crop of it. Its shorter side becomes 224 pixels unless a size is given; the longer
    one at most four times that, so that a strip of one pixel's height does not become gigantic.
    """
    backbone, description = _model(model, weights, features_only=True, taps=taps)
    picture = _with_channels(picture, description)
    if size is None:
        scale = SHORTER_SIDE / min(picture.size)
        size = tuple(min(round(side * scale), LONGEST * SHORTER_SIDE) for side in (picture.height, picture.width))  # type: ignore[assignment]
    height, width = size  # type: ignore[misc]
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    with torch.inference_mode():
        maps = backbone(normalised(description.preprocessing)(resized)[None])
    strides = {name: tap.stride for name, tap in backbone.taps.items()}  # type: ignore[union-attr, operator]
    origin = f"{description.name}, weights: {description.weights or 'fresh (random)'}"
    return resized, {name: values[0].numpy() for name, values in maps.items()}, strides, origin


def best_classes(picture: Image.Image, model: str | None, weights: str | None, top: int) -> list[tuple[str, float]]:
    """Return the `top` most probable classes with their probabilities, the best first.

    Raises:
        OptionError: `weights` is "none", or a file of a model without a classifier.
    """
    if weights == "none":
        raise OptionError("predictions of fresh weights mean nothing; name weights, or leave --weights out")
    classifier, description = _model(model, weights or "default")
    if description.head != "classification":
        raise OptionError(f"{weights!r} holds no classifier of {description.name!r}, and predictions need one")
    if description.fresh:
        raise OptionError(
            f"{weights!r} has no classifier for {description.name!r}, and predictions of fresh weights mean nothing"
        )
    with torch.inference_mode():
        picture = _with_channels(picture, description)
        probabilities = classifier(registry.transforms(classifier)(picture)[None])[0].softmax(0)
    names = _class_names(description.classes, len(probabilities))
    best = probabilities.topk(min(top, len(names)))
    return [(names[index], value) for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def _model(model: str | None, weights: str | None, **asked: Any) -> tuple[nn.Module, Description]:
    """Return a model in evaluation mode: the file's own, or one of the catalogue with the weights that are named."""
    pretrained: bool | str = False
    name = model or "mobilenet_v2"
    if weights == "default":
        pretrained = True
    elif weights is None:
        entries = registry.default.weights_of(name)
        pretrained = bool(entries and entries[0].default)
    elif weights != "none":
        pretrained = weights
    if model is None and isinstance(pretrained, str) and Path(pretrained).exists():
        built = registry.load(pretrained, **asked)
    else:
        built = registry.build(name, pretrained=pretrained, **asked)
    assert isinstance(built.description, Description)
    return built.eval(), built.description


def _with_channels(picture: Image.Image, description: Description) -> Image.Image:
    channels = len(description.preprocessing.mean)
    if channels not in (1, 3):
        raise OptionError(
            f"{description.name!r} reads images of {channels} channels, and a picture has 1 or 3; choose another model"
        )
    return plain(picture, "L" if channels == 1 else "RGB")


def _class_names(classes: str, count: int) -> list[str]:
    if classes == "imagenet1k":
        # torchvision ships the names with every set of its ImageNet weights; any of them will do.
        from torchvision.models import MobileNet_V2_Weights

        return list(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
    return [f"class {index}" for index in range(count)]
