"""What segmentation heads have in common: logits of the image's size. No torch."""

from __future__ import annotations

from typing import Any

from featuretap.specs import BackboneSpec

__all__ = ["MODEL", "OUTPUTS", "VOC_CLASSES", "segmentation_outputs"]

VOC_CLASSES = 21
"""Classes of Pascal VOC, the background included, which torchvision's published segmenters have."""

MODEL = "featuretap.heads.modules.segmentation:SegmentationModel"
OUTPUTS = "featuretap.heads.segmentation:segmentation_outputs"


def segmentation_outputs(
    backbone: BackboneSpec, *, num_classes: int, height: int, width: int, auxiliary: bool = False, **options: Any
) -> dict[str, tuple[int, int, int]]:
    """Return name → (classes, height, width) of the logits."""
    return dict.fromkeys(("out", "aux") if auxiliary else ("out",), (num_classes, height, width))
