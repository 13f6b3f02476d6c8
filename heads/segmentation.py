"""Segmentation heads: LR-ASPP and DeepLabV3.

LR-ASPP is the head of MobileNetV3 (arXiv 1905.02244, section 6.4 and figure 10); DeepLabV3 (arXiv 1706.05587) pools an
atrous spatial pyramid at output stride 16 or 8.
"""

from __future__ import annotations

from typing import Any

from featuretap.specs import BackboneSpec, HeadSpec
from featuretap.specs.validation import MOST, Option, boolean, choice, count, is_list_of, is_whole
from featuretap.support.errors import HeadError

COARSEST = 16

SEGMENTER: dict[str, Any] = {
    # Pascal VOC's, the background included, which torchvision's published segmenters have.
    "num_classes": 21,
    "backbone_options": {"output_stride": 16},
    "outputs": "featuretap.heads.segmentation:segmentation_outputs",
    "model": "featuretap.heads.modules.models:SegmentationModel",
    "images": "whole",
    "task": "segmentation",
}

LRASPP = HeadSpec(
    "lraspp",
    reads=(("C3.depthwise", "C3"), "C5"),
    factory="featuretap.heads.modules.segmentation:lraspp",
    nodes="featuretap.heads.nodes.segmentation:lraspp_nodes",
    options={
        "inter_channels": count(128),
        "pooling": choice("window", "global"),
        "gate": choice("hard_sigmoid", "sigmoid"),
        "gate_bias": boolean(True),
    },
    layouts={"torchvision": "featuretap.heads.layouts.torchvision:lraspp"},
    per_class=("low_classifier.", "high_classifier."),
    description="LR-ASPP segmentation",
    **SEGMENTER,
)
"""By default the paper's. torchvision's pools the whole map (`pooling="global"`), gates by `gate="sigmoid"` without
bias, and reads C3.first in place of C3.depthwise."""

DEEPLAB_V3 = HeadSpec(
    "deeplab_v3",
    reads=("C5",),
    optional_reads={"auxiliary": (("C3.first", "C3"),)},
    factory="featuretap.heads.modules.segmentation:deeplab_v3",
    nodes="featuretap.heads.nodes.segmentation:deeplab_v3_nodes",
    options={
        "auxiliary": boolean(False),
        "atrous_rates": Option(
            (12, 24, 36),
            lambda value: is_list_of(value, lambda rate: is_whole(rate, 1, MOST)),
            "one or more positive whole numbers, such as (6, 12, 18)",
        ),
    },
    check="featuretap.heads.segmentation:check_stride",
    layouts={"torchvision": "featuretap.heads.layouts.torchvision:deeplab_v3"},
    per_class=("classifier.4.", "auxiliary.4."),
    description="DeepLabV3 segmentation",
    **SEGMENTER,
)
"""torchvision's head, and its rates, which are those of the paper for output stride 8; for 16 it has (6, 12, 18).
The auxiliary output, from a map at stride 8, is a second set of logits for the training loss."""


def segmentation_outputs(
    backbone: BackboneSpec, *, num_classes: int, height: int, width: int, auxiliary: bool = False, **options: Any
) -> dict[str, tuple[int, int, int]]:
    """Return name → (classes, height, width) of the logits."""
    return dict.fromkeys(("out", "aux") if auxiliary else ("out",), (num_classes, height, width))


def check_stride(backbone: BackboneSpec, **options: Any) -> None:
    """Refuse maps that are too coarse.

    Raises:
        HeadError: the stride of the map that the head reads is over 16.
    """
    name, tap = next(iter(backbone.taps.items()))
    if tap.stride > COARSEST:
        raise HeadError(
            f"head 'deeplab_v3' works at output stride 16 or 8, but {name} of {backbone.name!r} has stride "
            f"{tap.stride}; build it with output_stride=16, or name another tap"
        )
