"""A measure of how well outputs computed at reduced precision agree with float32."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Similarity of an output to its reference in float32, averaged over images.

    Args:
        cosine: cosine similarity; 1 if one output is a positive multiple of the other.
        error: norm of the difference divided by the norm of the reference.
        top1: for logits, the fraction of images with the same top-1 class; otherwise None.
    """

    cosine: float
    error: float
    top1: float | None = None
