"""The model that a command is given: a name with weights, or a weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from featuretap import registry
from featuretap.models.built import description_of
from featuretap.support.errors import OptionError
from featuretap.workflows.inference.predicting import task_of

DEFAULT_BACKBONE = "mobilenet_v2"


def open_model(name: str | None, weights: str | None, **arguments: Any) -> nn.Module:
    """Build a backbone by name with weights, or load a weights file.

    Args:
        name: of the backbone; None for that of the file, or the default.
        weights: a tag, a file, "none" for random ones, or None or "default" for the catalogue's default.
        **arguments: of `registry.build` or `registry.load`.
    """
    if name is None and weights is not None and Path(weights).exists():
        return registry.load(weights, **arguments)
    pretrained: bool | str = {None: True, "default": True, "none": False}.get(weights, weights or "")
    return registry.build(name or DEFAULT_BACKBONE, pretrained=pretrained, **arguments)


def open_predictor(name: str | None, weights: str | None) -> tuple[nn.Module, str]:
    """Return a trained model that predicts classes, in evaluation mode and on the GPU if there is one, and its task.

    Raises:
        OptionError: `weights` is "none", or the model predicts no classes, or its classifier is randomly initialised.
    """
    if weights == "none":
        raise OptionError("predictions of random weights mean nothing; name weights, or leave --weights out")
    model = open_model(name, weights)
    description = description_of(model, "predict")
    task = task_of(description)
    if not task:
        raise OptionError(
            f"{weights!r} holds no classifier, detector or segmenter of {description.name!r}, and predictions need one"
        )
    if description.random_head:
        raise OptionError(
            f"{weights!r} has no classifier for {description.name!r}, and predictions of random weights mean nothing"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Models keep the dtype of their file, and float16 does not run on a CPU.
    return model.eval().to(device, torch.float32).to(memory_format=torch.channels_last), task
