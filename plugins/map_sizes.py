"""How a network rounds the sizes of its maps, found by running it on images of several sizes. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Literal

Rounding = Literal["ceil", "floor"] | int

DIVISIBLE = 256
"""Height and width of an image that every usual stride divides."""
PROBES = (
    DIVISIBLE + 1,
    DIVISIBLE + 31,
    *sorted(range(DIVISIBLE + 2, DIVISIBLE + 31), key=lambda size: -(size & -size)),
)
"""Sizes to try: a map that rounds up grows at the first, one that rounds down not even at the second; then halving."""


def find_roundings(
    strides: Sequence[int], measure: Callable[[int], Sequence[int]], usual_size: int = DIVISIBLE
) -> list[Rounding | None]:
    """Return the rounding of each map, as in `Tap`; None for a map whose size is not the image's divided by its stride.

    Args:
        strides: of the maps.
        measure: size → heights of the maps of a square image; empty where the network refuses the size.
        usual_size: of the images that the network was made for.
    """
    measure = cache(measure)
    accepted = next((size for size in (DIVISIBLE, usual_size) if measure(size)), None)
    if accepted is None:
        return ["ceil"] * len(strides)
    return [_find_rounding(index, stride, accepted, measure) for index, stride in enumerate(strides)]


def _find_rounding(index: int, stride: int, accepted: int, measure: Callable[[int], Sequence[int]]) -> Rounding | None:
    """Return the rounding of one map, whose height for an image of `size` pixels is `(size + added) // stride`.

    Each probe rules out values of `added`. Where several remain, because the network accepts one size only, or none,
    because it follows no such rule (MobileViT resizes its maps to an even number of pixels), "ceil" is preferred.
    """

    def fitting(candidates: Iterable[int], size: int) -> list[int]:
        return [added for added in candidates if (size + added) // stride == measure(size)[index]]

    candidates = fitting(range(stride), accepted)
    if not candidates:
        return None
    for size in PROBES:
        if len({(size + added) // stride for added in candidates}) > 1:
            if not measure(size):
                break
            candidates = fitting(candidates, size)
    if not candidates or stride - 1 in candidates:
        return "ceil"
    return "floor" if 0 in candidates else candidates[0]
