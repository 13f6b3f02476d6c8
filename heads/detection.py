"""What detection heads have in common: sizes of images, and boxes as output. No torch."""

from __future__ import annotations

from typing import Any

from featuretap.specs import BackboneSpec
from featuretap.specs.validation import Option, count, is_whole, number

__all__ = ["COCO_CLASSES", "NORMALISATION", "RESIZING", "boxes", "per_level", "share"]

COCO_CLASSES = 91
"""Labels of COCO with the background and the numbers that it leaves out, which torchvision's detectors have."""


def share(default: float) -> Option:
    """Return an option that is an overlap, a score or a proportion."""
    return number(default, 0.0, 1.0)


def _is_per_channel(value: Any) -> bool:
    return value is None or (
        isinstance(value, tuple | list)
        and len(value) > 0
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )


def _is_min_size(value: Any) -> bool:
    return is_whole(value, 1) or (
        isinstance(value, tuple | list) and len(value) > 0 and all(is_whole(size, 1) for size in value)
    )


NORMALISATION = {
    "image_mean": Option(None, _is_per_channel, "None or a number for each channel, of values from 0 to 1"),
    "image_std": Option(None, _is_per_channel, "None or a number for each channel, of values from 0 to 1"),
}
"""None is what the weights were trained with."""

RESIZING = {
    "min_size": Option(800, _is_min_size, "a number of pixels, or several to choose from in training"),
    "max_size": count(1333),
    **NORMALISATION,
}
"""torchvision's: images are resized to a shorter side of `min_size`, but to no longer side over `max_size`."""


def per_level(allowed: str) -> Option:
    """Return an option that has numbers for each level, and None by default."""

    def accepts(value: Any) -> bool:
        return value is None or (
            isinstance(value, tuple | list)
            and len(value) > 0
            and all(isinstance(level, tuple | list) and len(level) > 0 for level in value)
            and all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for level in value for v in level)
        )

    return Option(None, accepts, allowed)


def boxes(
    backbone: BackboneSpec,
    *,
    height: int,
    width: int,
    detections_per_img: int = 0,
    box_detections_per_img: int = 0,
    **options: Any,
) -> dict[str, tuple[int | str, ...]]:
    """Return what torchvision's detectors predict for one image: boxes in its pixels, and their labels and scores."""
    found = f"0…{detections_per_img or box_detections_per_img}"
    return {"boxes": (found, 4), "labels": (found,), "scores": (found,)}
