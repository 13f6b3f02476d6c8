"""Running a model on one picture, for the command line."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

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
    model: str,
    weights: str | None,
    taps: tuple[str, ...] | None,
    size: tuple[int, int] | None,
) -> tuple[Image.Image, Maps, dict[str, int], str]:
    """Return the picture as the model saw it, its maps (C, H, W), their strides, and where the weights are from.

    The whole picture is used, not a crop of it. Its shorter side becomes 224 pixels unless a size is given; the longer
    one at most four times that, so that a strip of one pixel's height does not become gigantic.
    """
    pretrained: bool | str = False
    if weights is None:
        entries = registry.default.weights_of(model)
        pretrained = bool(entries and entries[0].default)
    elif weights != "none":
        pretrained = weights
    backbone = registry.build(model, features_only=True, taps=taps, pretrained=pretrained).eval()
    description = backbone.description
    assert isinstance(description, Description)
    picture = _with_channels(picture, len(description.preprocessing.mean), model)
    if size is None:
        scale = SHORTER_SIDE / min(picture.size)
        size = tuple(min(round(side * scale), LONGEST * SHORTER_SIDE) for side in (picture.height, picture.width))  # type: ignore[assignment]
    height, width = size  # type: ignore[misc]
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    with torch.inference_mode():
        maps = backbone(normalised(description.preprocessing)(resized)[None])
    strides = {name: tap.stride for name, tap in backbone.taps.items()}  # type: ignore[union-attr, operator]
    origin = str(description.weights or "fresh (random)")
    return resized, {name: values[0].numpy() for name, values in maps.items()}, strides, origin


def best_classes(picture: Image.Image, model: str, weights: str | None, top: int) -> list[tuple[str, float]]:
    """Return the `top` most probable classes with their probabilities, the best first.

    Raises:
        OptionError: `weights` is "none".
    """
    if weights == "none":
        raise OptionError("predictions of fresh weights mean nothing; name weights, or leave --weights out")
    classifier = registry.build(model, pretrained=weights or True).eval()
    with torch.inference_mode():
        description = classifier.description
        assert isinstance(description, Description)
        picture = _with_channels(picture, len(description.preprocessing.mean), model)
        probabilities = classifier(registry.transforms(classifier)(picture)[None])[0].softmax(0)
    names = _class_names(description.classes, len(probabilities))
    best = probabilities.topk(min(top, len(names)))
    return [(names[index], value) for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def _with_channels(picture: Image.Image, channels: int, model: str) -> Image.Image:
    if channels not in (1, 3):
        raise OptionError(
            f"{model!r} reads images of {channels} channels, and a picture has 1 or 3; choose another model"
        )
    return plain(picture, "L" if channels == 1 else "RGB")


def _class_names(classes: str, count: int) -> list[str]:
    if classes == "imagenet1k":
        # torchvision ships the names with every set of its ImageNet weights; any of them will do.
        from torchvision.models import MobileNet_V2_Weights

        return list(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
    return [f"class {index}" for index in range(count)]
