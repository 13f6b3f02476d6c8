"""Segmentation heads: LR-ASPP and DeepLabV3.

LR-ASPP is the head of MobileNetV3 (arXiv 1905.02244, section 6.4 and figure 10). DeepLabV3 (arXiv 1706.05587) uses
atrous spatial pyramid pooling at output stride 16 or 8.
"""

from __future__ import annotations

from typing import Any

from featuretap.specs import BackboneSpec, HeadSpec
from featuretap.specs.validation import MOST, Option, boolean, choice, count, is_list_of, is_whole
from featuretap.support.errors import HeadError

COARSEST = 16

SEGMENTER: dict[str, Any] = {
    # As in torchvision's published segmenters: the classes of Pascal VOC, including the background.
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
"""The defaults follow the paper. torchvision's head pools the full map (`pooling="global"`), has `gate="sigmoid"` with
`gate_bias=False`, and reads C3.first instead of C3.depthwise."""

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
            "one or more positive integers, such as (6, 12, 18)",
        ),
    },
    check="featuretap.heads.segmentation:check_stride",
    layouts={"torchvision": "featuretap.heads.layouts.torchvision:deeplab_v3"},
    per_class=("classifier.4.", "auxiliary.4."),
    description="DeepLabV3 segmentation",
    **SEGMENTER,
)
"""The defaults follow torchvision. Its `atrous_rates` are those of the paper for output stride 8; for output stride 16,
the paper uses (6, 12, 18). `auxiliary` adds logits from a map at stride 8 for the training loss."""


def segmentation_outputs(
    backbone: BackboneSpec, *, num_classes: int, height: int, width: int, auxiliary: bool = False, **options: Any
) -> dict[str, tuple[int, int, int]]:
    """Return a mapping from output to the shape of its logits, (classes, height, width)."""
    return dict.fromkeys(("out", "aux") if auxiliary else ("out",), (num_classes, height, width))


def check_stride(backbone: BackboneSpec, **options: Any) -> None:
    """Check that the map that DeepLabV3 reads is not too coarse.

    Args:
        backbone: spec of the backbone.
        **options: options of the head, which have no effect.

    Raises:
        HeadError: the stride of the map is above 16.
    """
    name, tap = next(iter(backbone.taps.items()))
    if tap.stride > COARSEST:
        raise HeadError(
            f"head 'deeplab_v3' requires output stride 16 or 8, but {name} of {backbone.name!r} has stride "
            f"{tap.stride}; build it with output_stride=16, or choose another tap"
        )
