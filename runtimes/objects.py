"""What a detector finds, and whether a file of it finds the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.models.built import unwrap
from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.verifying import TOLERANCE
from featuretap.specs.description import Description
from featuretap.support.errors import ExportError, HeadError

__all__ = ["Found", "compare", "detector_of", "names_of", "noise"]

Found = Mapping[str, Tensor]

ALIKE = 0.9
"""Share of the objects that must be found again. Where scores are equal to rounding, as those of fresh weights are,
either of two boxes may be the one that is kept."""


def detector_of(model: nn.Module) -> tuple[Any, Description]:
    """Return a copy of torchvision's detector in a model of ours, in evaluation, and what the model is.

    Raises:
        OptionError: no model of featuretap's.
        HeadError: its head is no detector of torchvision's.
    """
    inner: Any = unwrap(model, "registry.export writes")
    if not hasattr(inner, "as_detector"):
        raise HeadError(
            f"the head {inner.description.head!r} finds objects in a way of its own; those that are exported are "
            "made of torchvision's detectors"
        )
    return copy.deepcopy(inner).eval().requires_grad_(False).as_detector(), inner.description


def names_of(detector: nn.Module) -> tuple[str, ...]:
    """Return the names of what a detector says of an object, in the order that files have them."""
    heads: Any = getattr(detector, "roi_heads", None)
    masks = heads is not None and heads.has_mask()
    return ("boxes", "scores", "labels", *(("masks",) if masks else ()))


def noise(like: Tensor, seed: int) -> Tensor:
    """Return images of a shape, with values from 0 to 1, which are always the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(like.shape, generator=generator).to(like)


def compare(model: Exportable, pairs: Sequence[tuple[Found, Found]]) -> None:
    """Compare what the model finds with what the file finds.

    Objects are the same if their labels are, and boxes, scores and masks to 1e-4 of the largest number of each, or of
    1. Their order is not compared.

    Args:
        model: what was exported.
        pairs: for each image what the two found.

    Raises:
        ExportError: fewer than nine in ten objects are the same.
    """
    objects = sum(max(len(want["boxes"]), len(got["boxes"])) for want, got in pairs)
    again = sum(_found_again(want, got) for want, got in pairs)
    if again < ALIKE * objects:
        raise ExportError(
            f"{model.words} was exported, and of {objects} objects in noise the file and the model agree about "
            f"{again}; the file is not kept"
        )


def _found_again(want: Found, got: Found) -> int:
    left = list(range(len(got["boxes"])))
    for index in range(len(want["boxes"])):
        match = next((other for other in left if _is_same(want, index, got, other)), None)
        if match is not None:
            left.remove(match)
    return len(got["boxes"]) - len(left)


def _is_same(want: Found, index: int, got: Found, other: int) -> bool:
    return all(
        float((got[name][other] - values[index]).abs().max()) <= TOLERANCE * max(1.0, float(values.abs().max()))
        for name, values in want.items()
    )
