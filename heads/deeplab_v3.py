"""DeepLabV3 (arXiv 1706.05587): atrous spatial pyramid pooling at output stride 16 or 8. No torch."""

from __future__ import annotations

from typing import Any

from featuretap.heads.segmentation import MODEL, OUTPUTS, VOC_CLASSES
from featuretap.specs import BackboneSpec, HeadSpec
from featuretap.specs.validation import Option, boolean, is_whole
from featuretap.support.errors import HeadError

__all__ = ["DEEPLAB_V3", "check_stride"]

COARSEST = 16


def _are_rates(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) > 0 and all(is_whole(rate, 1) for rate in value)


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


DEEPLAB_V3 = HeadSpec(
    "deeplab_v3",
    reads=("C5",),
    optional_reads={"auxiliary": (("C3.first", "C3"),)},
    factory="featuretap.heads.modules.deeplab_v3:deeplab_v3",
    num_classes=VOC_CLASSES,
    options={
        "auxiliary": boolean(False),
        "atrous_rates": Option((12, 24, 36), _are_rates, "one or more positive whole numbers, such as (6, 12, 18)"),
    },
    backbone_options={"output_stride": 16},
    check="featuretap.heads.deeplab_v3:check_stride",
    outputs=OUTPUTS,
    model=MODEL,
    images="whole",
    task="segmentation",
    layouts={"torchvision": "featuretap.heads.layouts.torchvision:deeplab_v3"},
    per_class=("classifier.4.", "auxiliary.4."),
    description="DeepLabV3 segmentation",
)
"""torchvision's head, and its rates, which are those of the paper for output stride 8; for 16 it has (6, 12, 18).
The auxiliary output, from a map at stride 8, is a second set of logits to learn from."""
