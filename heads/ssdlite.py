"""SSDLite (MobileNetV2, arXiv 1801.04381, section 6.2; MobileNetV3, arXiv 1905.02244, section 6.3). No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featuretap.heads.detection import COCO_CLASSES, NORMALISATION, share
from featuretap.specs import HeadSpec
from featuretap.specs.validation import Option, boolean, count, is_whole

__all__ = ["SSDLITE", "extra_channels", "fixed_size"]

EXTRA = (512, 256, 256, 128)
LEAST = 16
MOST_LEVELS = 32


def extra_channels(width: float) -> tuple[int, ...]:
    """Return the channels of the layers that follow the backbone, scaled as the papers' detection code does.

    By truncation, and not below 16 (`feature_map_generators.py` of TensorFlow's object detection; torchvision alike).
    """
    return tuple(max(LEAST, int(channels * width)) for channels in EXTRA)


def fixed_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of the images."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) == 2 and all(is_whole(side, 1) for side in value)
    return is_whole(value, 1)


SSDLITE = HeadSpec(
    "ssdlite",
    reads=(("C4.expansion", "C4"), "C5"),
    consecutive=True,
    factory="featuretap.heads.modules.ssdlite:ssdlite",
    num_classes=COCO_CLASSES,
    min_classes=2,
    options={
        "size": Option(320, _is_size, "a number of pixels, or (height, width)"),
        "reduce_lowest_anchors": boolean(True),
        **NORMALISATION,
        "score_thresh": share(0.001),
        "nms_thresh": share(0.55),
        "detections_per_img": count(300),
        "topk_candidates": count(300),
        "iou_thresh": share(0.5),
        "positive_fraction": share(0.25),
    },
    outputs="featuretap.heads.detection:boxes",
    model="featuretap.heads.modules.detection:DetectionModel",
    images="raw",
    task="detection",
    layouts={"torchvision": "featuretap.heads.layouts.torchvision:ssdlite"},
    per_class=tuple(f"predictor.classification_head.module_list.{level}.1." for level in range(MOST_LEVELS)),
    description="SSDLite detection",
)
"""By default the papers': three boxes at each place of the finest map, as TensorFlow's `reduce_boxes_in_lowest_layer`
has it. torchvision has six everywhere. All other defaults are those of torchvision's `ssdlite320`."""
