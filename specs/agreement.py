"""How far outputs that were computed with less precision agree with the expected ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Similarity of an output to the expected one; means over the images.

    Args:
        cosine: cosine similarity: 1 where one is a positive multiple of the other.
        error: norm of the difference, relative to the norm of the expected output.
        top1: of logits, the fraction of images with the same most probable class.
    """

    cosine: float
    error: float
    top1: float | None = None
