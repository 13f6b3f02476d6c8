"""The model that features are taken from, and what it is known by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from featuretap.models.transforms import check_channels, compose, compose_for_size
from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.inference.models import open_model

__all__ = ["Model", "open_extractor"]


@dataclass(frozen=True)
class Model:
    """A backbone that is ready to run, and how images are prepared for it.

    Args:
        backbone: in evaluation mode, in float32.
        description: how it was built.
        size: height and width in pixels that all images get.
        preprocessing: how they get them; nothing is resized or cropped where whole images are resized to that size.
        prepare: image → tensor (C, height, width).
    """

    backbone: nn.Module
    description: Description
    size: tuple[int, int]
    preprocessing: Preprocessing
    prepare: Callable[[Any], Any]

    def shapes(self, pooled: bool) -> dict[str, tuple[int, ...]]:
        """Return tap address → shape of one image's features: (C,) if pooled, else (C, H, W)."""
        taps: Any = self.backbone.taps
        return {address: tap.shape(*self.size)[: 1 if pooled else 3] for address, tap in taps.items()}

    def digest(self) -> str:
        """Return the SHA-256 of the names and numbers of the weights, in hexadecimal digits."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def open_extractor(
    model: str | None, weights: str | None, taps: tuple[str, ...], size: tuple[int, int] | None = None
) -> Model:
    """Build the layers up to the last of some taps.

    Args:
        model: name of the backbone; None for that of the file of weights, or "mobilenet_v2".
        weights: a tag, a file, "none" for fresh ones, which are always the same, or None for the catalogue's default.
        taps: addresses.
        size: height and width that whole images are resized to, in pixels; None for the resizing and the crop that the
            weights were trained with.

    Raises:
        OptionError: the model's images have other than one or three channels.
        FeaturetapError: as `registry.build` and `registry.load` do.
    """
    # Random weights are always the same, so that a run with them can be resumed.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = open_model(model, weights, features_only=True, taps=taps).eval().float()
    description: Description = backbone.description  # type: ignore[assignment]
    preprocessing = description.preprocessing
    check_channels(description)
    if size is not None:
        prepare = compose_for_size(preprocessing, size)
        return Model(backbone, description, size, replace(preprocessing, resize=None, crop=None), prepare)
    assert preprocessing.crop is not None  # that of a bare backbone always crops
    size = (preprocessing.crop, preprocessing.crop)
    return Model(backbone, description, size, preprocessing, compose(preprocessing))
