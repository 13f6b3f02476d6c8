"""How near the outputs of one model are to those of another, image by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

__all__ = ["Agreement", "agreements"]

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Agreement:
    """How near an output is to the expected one; means over the images.

    Args:
        cosine: similarity of the two as vectors: 1 where one is a positive multiple of the other.
        error: length of the difference, as a part of the length of the expected one.
        top1: of logits, the share of the images for which the largest is that of the same class.
    """

    cosine: float
    error: float
    top1: float | None = None


def agreements(pairs: Iterable[tuple[Outputs, ...]]) -> dict[str, Agreement]:
    """Return output → agreement.

    Args:
        pairs: what is expected of an image and what was found, each output → tensor of the same shape, with the image
            as its only row. At least one pair.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for expected, found in pairs:
        for name, values in expected.items():
            rows.setdefault(name, []).append(_agreement(values.flatten().double(), found[name].flatten().double()))
    made = {}
    for name, measured in rows.items():
        cosine, error, top1 = map(fmean, zip(*measured, strict=True))
        made[name] = Agreement(cosine, error, top1 if name == "logits" else None)
    return made


def _agreement(expected: Tensor, found: Tensor) -> tuple[float, float, float]:
    tiny = torch.finfo(expected.dtype).tiny
    cosine = F.cosine_similarity(expected, found, dim=0)
    error = (found - expected).norm() / expected.norm().clamp(min=tiny)
    return float(cosine), float(error), float(expected.argmax() == found.argmax())
