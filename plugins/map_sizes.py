"""How large the maps of somebody's network are, found by running it: one size of images after another. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

__all__ = ["Rounding", "roundings"]

Rounding = Literal["ceil", "floor"] | int

WHOLE = 256
"""Height and width of an image that every usual stride divides, and twice every usual stride."""
PROBES = (WHOLE + 1, WHOLE + 31, *sorted(range(WHOLE + 2, WHOLE + 31), key=lambda size: -(size & -size)))
"""Sizes to try: first those that tell networks that always round up or always down, then the others by halving."""


def roundings(
    strides: Sequence[int], heights: Callable[[int], Sequence[int]], own: int = WHOLE
) -> list[Rounding | None]:
    """Return how each map's size is rounded, as `Tap` states it; None where a whole image makes no whole map.

    What cannot be found out is taken to be rounded up: because the network takes one size only, or because it follows
    no rule, as MobileViT, which stretches its maps to an even number of pixels.

    Args:
        strides: of the maps.
        heights: size → heights of the maps of a square image, none where the network refuses it.
        own: size of the images that the network was made for.
    """
    size, found = next(((size, found) for size in (WHOLE, own) if (found := heights(size))), (own, []))
    if not found:
        return ["ceil"] * len(strides)
    whole = possible = [
        _fitting(range(stride), size, stride, height) for stride, height in zip(strides, found, strict=True)
    ]
    for size in PROBES:
        expected = [{(size + up) // stride for up in ups} for stride, ups in zip(strides, possible, strict=True)]
        if all(len(sizes) < 2 for sizes in expected):
            continue
        found = heights(size)
        if not found:
            break
        possible = [_fitting(ups, size, *map_) for ups, *map_ in zip(possible, strides, found, strict=True)]
    return [_named(stride, ups) if fits else None for stride, fits, ups in zip(strides, whole, possible, strict=True)]


def _fitting(ups: Sequence[int], size: int, stride: int, height: int) -> list[int]:
    return [up for up in ups if (size + up) // stride == height]


def _named(stride: int, ups: Sequence[int]) -> Rounding:
    if not ups or stride - 1 in ups:
        return "ceil"
    return "floor" if 0 in ups else ups[0]
