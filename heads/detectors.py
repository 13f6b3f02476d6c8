"""torchvision's detectors on a feature pyramid. No torch.

RetinaNet (arXiv 1708.02002), FCOS (arXiv 1904.01355), Faster R-CNN (arXiv 1506.01497, on a pyramid as in arXiv
1612.03144, section 4) and Mask R-CNN (arXiv 1703.06870).

Options bear torchvision's names and have its defaults; those of the pyramid come before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featuretap.heads.detection import COCO_CLASSES, RESIZING, boxes, per_level, share
from featuretap.heads.fpn import GROUPS, PYRAMID_OPTIONS, check_pyramid, pyramid_taps
from featuretap.specs import BackboneSpec, HeadSpec
from featuretap.specs.validation import choice, count, number
from featuretap.support.errors import OptionError

__all__ = ["FASTER_RCNN", "FCOS", "MASK_RCNN", "RETINANET", "anchor_sizes"]

P6P7 = {**PYRAMID_OPTIONS, "extra_levels": choice("p6p7", "pool", None)}
POOL = {**PYRAMID_OPTIONS, "extra_levels": choice("pool", "p6p7", None)}

ANCHORS = {
    "anchor_sizes": per_level("None or, for each level, its sizes in pixels, such as ((32,), (64,), (128,))"),
    "aspect_ratios": per_level("None or, for each level, height / width of its anchors, such as ((0.5, 1, 2),)"),
}

RETINANET_OPTIONS = {
    "score_thresh": share(0.05),
    "nms_thresh": share(0.5),
    "detections_per_img": count(300),
    "fg_iou_thresh": share(0.5),
    "bg_iou_thresh": share(0.4),
    "topk_candidates": count(1000),
}

FCOS_OPTIONS = {
    "center_sampling_radius": number(1.5, 0.0, 100.0),
    "score_thresh": share(0.2),
    "nms_thresh": share(0.6),
    "detections_per_img": count(100),
    "topk_candidates": count(1000),
}

RCNN_OPTIONS = {
    "rpn_pre_nms_top_n_train": count(2000),
    "rpn_pre_nms_top_n_test": count(1000),
    "rpn_post_nms_top_n_train": count(2000),
    "rpn_post_nms_top_n_test": count(1000),
    "rpn_nms_thresh": share(0.7),
    "rpn_fg_iou_thresh": share(0.7),
    "rpn_bg_iou_thresh": share(0.3),
    "rpn_batch_size_per_image": count(256),
    "rpn_positive_fraction": share(0.5),
    "rpn_score_thresh": share(0.0),
    "box_score_thresh": share(0.05),
    "box_nms_thresh": share(0.5),
    "box_detections_per_img": count(100),
    "box_fg_iou_thresh": share(0.5),
    "box_bg_iou_thresh": share(0.5),
    "box_batch_size_per_image": count(512),
    "box_positive_fraction": share(0.25),
}

OCTAVES = (32, 64, 128, 256, 512)
"""Sizes of the anchors of the FPN paper (section 4.1), in pixels of the resized image."""


def levels(backbone: BackboneSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return name → tap of the levels that a detector's pyramid has."""
    own = {name: options[name] for name in PYRAMID_OPTIONS}
    return dict(pyramid_taps(backbone, **own))


def anchor_sizes(kind: str, strides: list[int]) -> tuple[tuple[int, ...], ...]:
    """Return the sizes of the anchors of each level, for the strides that there are.

    Args:
        kind: "retinanet" (arXiv 1708.02002, section 4: four times the stride, and two sizes more in the octave), "fcos"
            (arXiv 1904.01355: the stride), or another, as Faster R-CNN on a pyramid (arXiv 1612.03144, section 4.1):
            eight times the stride. Where strides do not reach all of 32 to 512 pixels so, every level has all five
            sizes, as torchvision's Faster R-CNN on MobileNetV3 does.
        strides: of the levels, the finest first.
    """
    if kind == "retinanet":
        return tuple(tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in strides)
    if kind == "fcos":
        return tuple((stride,) for stride in strides)
    octaves = tuple((8 * stride,) for stride in strides)
    return octaves if {size for (size,) in octaves} >= set(OCTAVES) else (OCTAVES,) * len(strides)


def check_anchors(backbone: BackboneSpec, **options: Any) -> None:
    """Refuse anchors for other levels than there are, or of other numbers from level to level.

    Raises:
        OptionError: `anchor_sizes` or `aspect_ratios` does not fit the levels, or overlaps contradict each other.
    """
    check_pyramid(backbone, **options)
    for kind in ("", "rpn_", "box_"):
        low, high = options.get(f"{kind}bg_iou_thresh", 0.0), options.get(f"{kind}fg_iou_thresh", 1.0)
        if low > high:
            raise OptionError(
                f"{kind}bg_iou_thresh={low} is over {kind}fg_iou_thresh={high}; what is background overlaps less"
            )
    names = list(levels(backbone, options))
    for option in ANCHORS:
        given = options[option]
        if given is not None and len(given) != len(names):
            raise OptionError(f"{option} is for {len(given)} levels, and there are {len(names)}: {', '.join(names)}")
    sizes, ratios = (options[option] or ((None,),) * len(names) for option in ANCHORS)
    numbers = {len(size) * len(ratio) for size, ratio in zip(sizes, ratios, strict=True)}
    if len(numbers) > 1:
        raise OptionError("anchor_sizes and aspect_ratios give levels different numbers of anchors; give all the same")


def check_groups(backbone: BackboneSpec, *, out_channels: int, **options: Any) -> None:
    """Refuse channels that FCOS cannot normalise in groups.

    Raises:
        OptionError: `out_channels` is no multiple of 32.
    """
    check_pyramid(backbone, out_channels=out_channels, **options)
    if out_channels % GROUPS:
        raise OptionError(
            f"head 'fcos' normalises its channels in {GROUPS} groups, so that out_channels={out_channels} should be a "
            f"multiple of {GROUPS}"
        )


def boxes_and_masks(backbone: BackboneSpec, *, height: int, width: int, **options: Any) -> dict[str, Any]:
    """Return what Mask R-CNN predicts for one image: boxes, and for each the probabilities of its mask."""
    predicted = boxes(backbone, height=height, width=width, **options)
    return {**predicted, "masks": (*predicted["labels"], 1, height, width)}


DETECTOR: dict[str, Any] = {
    "consecutive": True,
    "num_classes": COCO_CLASSES,
    "outputs": "featuretap.heads.detection:boxes",
    "model": "featuretap.heads.modules.detection:DetectionModel",
    "images": "raw",
    "task": "detection",
}

RETINANET = HeadSpec(
    "retinanet",
    reads=("C3", "C4", "C5"),
    factory="featuretap.heads.modules.detectors:retinanet",
    options={**P6P7, **RESIZING, **ANCHORS, **RETINANET_OPTIONS},
    check="featuretap.heads.detectors:check_anchors",
    per_class=("predictor.classification_head.cls_logits.",),
    description="RetinaNet detection",
    **DETECTOR,
)

FCOS = HeadSpec(
    "fcos",
    reads=("C3", "C4", "C5"),
    factory="featuretap.heads.modules.detectors:fcos",
    options={**P6P7, **RESIZING, **FCOS_OPTIONS},
    check="featuretap.heads.detectors:check_groups",
    per_class=("predictor.classification_head.cls_logits.",),
    description="FCOS detection, without anchors",
    **DETECTOR,
)

FASTER_RCNN = HeadSpec(
    "faster_rcnn",
    reads=("C2", "C3", "C4", "C5"),
    factory="featuretap.heads.modules.detectors:faster_rcnn",
    min_classes=2,
    options={**POOL, **RESIZING, **ANCHORS, **RCNN_OPTIONS},
    check="featuretap.heads.detectors:check_anchors",
    layouts={"torchvision": "featuretap.heads.layouts.torchvision:faster_rcnn"},
    per_class=("roi_heads.box_predictor.",),
    description="Faster R-CNN detection",
    **DETECTOR,
)

MASK_RCNN = HeadSpec(
    "mask_rcnn",
    reads=("C2", "C3", "C4", "C5"),
    factory="featuretap.heads.modules.detectors:mask_rcnn",
    min_classes=2,
    options={**POOL, **RESIZING, **ANCHORS, **RCNN_OPTIONS},
    check="featuretap.heads.detectors:check_anchors",
    per_class=("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."),
    description="Mask R-CNN detection and instance segmentation",
    **{**DETECTOR, "outputs": "featuretap.heads.detectors:boxes_and_masks"},
)
