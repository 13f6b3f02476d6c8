"""Models for the command line: the maps of one picture, and what predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from featuretap import registry
from featuretap.models.transforms import check_channels, normalised
from featuretap.specs.description import Description
from featuretap.support.errors import OptionError
from featuretap.support.images import convert_mode
from featuretap.workflows.inference.predicting import task_of

__all__ = ["feature_maps", "predictor"]

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
    check_channels(description)
    picture = convert_mode(picture, "L" if len(description.preprocessing.mean) == 1 else "RGB")
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


def predictor(model: str | None, weights: str | None) -> tuple[nn.Module, str]:
    """Return a model that names classes, in evaluation mode and on the GPU if there is one, and its task.

    Raises:
        OptionError: `weights` is "none", or of a model that names no classes, or a part of them would be random.
    """
    if weights == "none":
        raise OptionError("predictions of fresh weights mean nothing; name weights, or leave --weights out")
    built, description = _model(model, weights or "default")
    task = task_of(description)
    if not task:
        raise OptionError(
            f"{weights!r} holds no classifier, detector or segmenter of {description.name!r}, and predictions need one"
        )
    if description.fresh:
        raise OptionError(
            f"{weights!r} has no classifier for {description.name!r}, and predictions of fresh weights mean nothing"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Files keep their type of numbers, and half of them is nothing for a CPU.
    return built.to(device, torch.float32).to(memory_format=torch.channels_last), task


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
