"""Detection heads: torchvision's detectors on a feature pyramid, SSD and SSDLite.

RetinaNet (arXiv 1708.02002), FCOS (arXiv 1904.01355), Faster R-CNN (arXiv 1506.01497, on a pyramid as in arXiv
1612.03144, section 4), Mask R-CNN (arXiv 1703.06870), SSD (arXiv 1512.02325) and SSDLite (MobileNetV2, arXiv
1801.04381, section 6.2; MobileNetV3, arXiv 1905.02244, section 6.3).

Options have the names and defaults of torchvision. Heads with a pyramid also take the options of `fpn`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featuretap.heads.fpn import GROUPS, PYRAMID_OPTIONS, check_pyramid, pyramid_taps
from featuretap.specs import BackboneSpec, HeadSpec
from featuretap.specs.validation import MOST, Option, boolean, choice, count, is_list_of, is_number, is_whole, number
from featuretap.support.errors import OptionError

OCTAVES = (32, 64, 128, 256, 512)
"""Anchor sizes of the FPN paper (section 4.1), in pixels of the resized image."""

SSDLITE_EXTRA = (512, 256, 256, 128)

SSD_RATIOS = (2, 3)
"""Aspect ratios of SSD's default boxes besides 1. With their inverses and two squares, each location has six boxes."""

SMALLEST, LARGEST = 0.2, 0.95
"""Scales of SSD's default boxes on the finest and the coarsest map, as fractions of the image."""

SMALLEST_ANCHOR = 0.1
"""Scale of the one square on the finest map if that map has three boxes per location."""

LEAST_CHANNELS = 16
MOST_LEVELS = 32


LARGEST_FLOAT32 = 3e38


def share(default: float) -> Option:
    """Return an option that is an overlap, a score or a fraction, with this `default`."""
    return number(default, 0.0, 1.0)


def per_level(allowed: str) -> Option:
    """Return an option that is None or lists positive numbers for each level; `allowed` describes its values."""

    def is_positive(value: Any) -> bool:
        return is_number(value, 0, MOST) and value > 0

    return Option(
        None,
        lambda value: value is None or is_list_of(value, lambda level: is_list_of(level, is_positive)),
        allowed,
    )


def is_side(value: Any) -> bool:
    """Return whether `value` is a valid height or width of an image in pixels."""
    return is_whole(value, 1, MOST)


def is_finite(value: Any) -> bool:
    """Return whether `value` is a number that float32 can represent."""
    return is_number(value, -LARGEST_FLOAT32, LARGEST_FLOAT32)


PER_CHANNEL = Option(
    None,
    lambda value: value is None or is_list_of(value, is_finite, MOST),
    "None or a number for each channel, for values from 0 to 1",
)
NORMALIZATION = {"image_mean": PER_CHANNEL, "image_std": PER_CHANNEL}
"""None selects the values that the weights were trained with."""

RESIZING = {
    "min_size": Option(
        800,
        lambda value: is_side(value) or is_list_of(value, is_side),
        "a number of pixels, or several to choose from in training",
    ),
    "max_size": count(1333),
    **NORMALIZATION,
}
"""As in torchvision: the shorter side is resized to `min_size`, or less if the longer side would exceed `max_size`."""

P6P7 = {**PYRAMID_OPTIONS, "extra_levels": choice("p6p7", "pool", None)}
POOL = {**PYRAMID_OPTIONS, "extra_levels": choice("pool", "p6p7", None)}

ANCHORS = {
    "anchor_sizes": per_level("None or, for each level, its sizes in pixels, such as ((32,), (64,), (128,))"),
    "aspect_ratios": per_level("None or, for each level, height / width of its anchors, such as ((0.5, 1, 2),)"),
}

MOST_ANCHORS = 1_000
"""Maximum number of anchors per location, each of which has its own weights."""

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


def detector(name: str, description: str, reads: Any, options: Mapping[str, Option], **fields: Any) -> HeadSpec:
    """Return the spec of a detector.

    Args:
        name: name of the head; by default also of its factory in `featuretap.heads.modules.detection`.
        description: one-line description.
        reads: tap addresses that the head reads.
        options: options of the head.
        **fields: other fields of the `HeadSpec`, in place of the defaults for detectors.

    Returns:
        The spec.
    """
    usual = {
        "consecutive": True,
        # As in torchvision: COCO's category ids, which have gaps, and the background.
        "num_classes": 91,
        "outputs": "featuretap.heads.detection:boxes",
        "model": "featuretap.heads.modules.models:DetectionModel",
        "images": "raw",
        "task": "detection",
        "per_class": ("predictor.classification_head.cls_logits.",),
        "factory": f"featuretap.heads.modules.detection:{name}",
    }
    return HeadSpec(name, reads, options=options, description=description, **{**usual, **fields})


RETINANET = detector(
    "retinanet",
    "RetinaNet detection",
    ("C3", "C4", "C5"),
    {
        **P6P7,
        **RESIZING,
        **ANCHORS,
        "score_thresh": share(0.05),
        "nms_thresh": share(0.5),
        "detections_per_img": count(300),
        "fg_iou_thresh": share(0.5),
        "bg_iou_thresh": share(0.4),
        "topk_candidates": count(1000),
    },
    check="featuretap.heads.detection:check_anchors",
)

FCOS = detector(
    "fcos",
    "FCOS detection, without anchors",
    ("C3", "C4", "C5"),
    {
        **P6P7,
        **RESIZING,
        "center_sampling_radius": number(1.5, 0.0, 100.0),
        "score_thresh": share(0.2),
        "nms_thresh": share(0.6),
        "detections_per_img": count(100),
        "topk_candidates": count(1000),
    },
    check="featuretap.heads.detection:check_groups",
)

FASTER_RCNN = detector(
    "faster_rcnn",
    "Faster R-CNN detection",
    ("C2", "C3", "C4", "C5"),
    {**POOL, **RESIZING, **ANCHORS, **RCNN_OPTIONS},
    min_classes=2,
    check="featuretap.heads.detection:check_anchors",
    layouts={"torchvision": "featuretap.heads.layouts.torchvision:faster_rcnn"},
    per_class=("roi_heads.box_predictor.",),
)

MASK_RCNN = detector(
    "mask_rcnn",
    "Mask R-CNN detection and instance segmentation",
    ("C2", "C3", "C4", "C5"),
    {**POOL, **RESIZING, **ANCHORS, **RCNN_OPTIONS},
    min_classes=2,
    check="featuretap.heads.detection:check_anchors",
    outputs="featuretap.heads.detection:boxes_and_masks",
    per_class=("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."),
)

SSD_OPTIONS = {
    "size": Option(
        320,
        lambda value: is_side(value) or (is_list_of(value, is_side) and len(value) == 2),
        "a number of pixels, or (height, width)",
    ),
    "reduce_lowest_anchors": boolean(True),
    "clip_anchors": boolean(True),
    "resizing": choice("half_pixel", "asymmetric"),
    "scores": choice("softmax", "sigmoid"),
    **NORMALIZATION,
    "score_thresh": share(0.001),
    "nms_thresh": share(0.55),
    "detections_per_img": count(300),
    "topk_candidates": count(300),
    "iou_thresh": share(0.5),
    "positive_fraction": share(0.25),
}
"""The default of `reduce_lowest_anchors` follows the papers: three boxes per location on the finest map, as with
TensorFlow's `reduce_boxes_in_lowest_layer`. torchvision has six on every map. All other defaults are those of
torchvision's `ssdlite320`. TensorFlow's detectors do not clip anchors to the size of the image, resize images with
aligned first pixels instead of aligned corners ("asymmetric" in ONNX), and mostly score each class with a sigmoid."""

SSDLITE = detector(
    "ssdlite",
    "SSDLite detection",
    (("C4.expansion", "C4"), "C5"),
    SSD_OPTIONS,
    min_classes=2,
    factory="featuretap.heads.modules.ssd:ssdlite",
    nodes="featuretap.heads.nodes.detection:ssdlite_nodes",
    layouts={
        "torchvision": "featuretap.heads.layouts.torchvision:ssdlite",
        "tensorflow": "featuretap.heads.layouts.tensorflow:ssdlite",
    },
    per_class=tuple(f"predictor.classification_head.module_list.{level}.1." for level in range(MOST_LEVELS)),
)

SSD = detector(
    "ssd",
    "SSD detection, with full convolutions",
    SSDLITE.reads,
    {**SSD_OPTIONS, "predictor_kernel": choice(3, 1)},
    min_classes=2,
    factory="featuretap.heads.modules.ssd:ssd",
    nodes="featuretap.heads.nodes.detection:ssd_nodes",
    layouts={"tensorflow": "featuretap.heads.layouts.tensorflow:ssd"},
    per_class=tuple(f"predictor.classification_head.module_list.{level}." for level in range(MOST_LEVELS)),
)
"""SSD (arXiv 1512.02325) as in TensorFlow's Object Detection API. An extra layer is a 1×1 and a 3×3 convolution, each
with norm and ReLU6. A predictor is one convolution: 3×3 in the paper, 1×1 in many models of the API."""


def boxes(
    backbone: BackboneSpec,
    *,
    height: int,
    width: int,
    detections_per_img: int = 0,
    box_detections_per_img: int = 0,
    **options: Any,
) -> dict[str, tuple[int | str, ...]]:
    """Return the predictions of torchvision's detectors for one image as a mapping from name to shape.

    Args:
        backbone: spec of the backbone.
        height: height of the image in pixels.
        width: width of the image in pixels.
        detections_per_img: maximum number of boxes of a one-stage detector.
        box_detections_per_img: maximum number of boxes of a two-stage detector.
        **options: other options, which have no effect.

    Returns:
        Shapes of boxes (x1, y1, x2, y2 in pixels of the image), labels and scores.
    """
    found = f"0…{detections_per_img or box_detections_per_img}"
    return {"boxes": (found, 4), "labels": (found,), "scores": (found,)}


def boxes_and_masks(backbone: BackboneSpec, *, height: int, width: int, **options: Any) -> dict[str, Any]:
    """Return the predictions of Mask R-CNN for one image: those of `boxes`, with a mask for each box."""
    predicted = boxes(backbone, height=height, width=width, **options)
    return {**predicted, "masks": (*predicted["labels"], 1, height, width)}


def anchor_sizes(kind: str, strides: list[int]) -> tuple[tuple[int, ...], ...]:
    """Return the anchor sizes of each level.

    Args:
        kind: name of the head. "retinanet" has three sizes per octave, starting at four times the stride (arXiv
            1708.02002, section 4). "fcos" has the stride (arXiv 1904.01355). Other heads, such as Faster R-CNN, have
            eight times the stride (FPN, arXiv 1612.03144, section 4.1); if the strides do not produce all sizes from 32
            to 512 pixels, every level has all five sizes, as in torchvision's Faster R-CNN on MobileNetV3.
        strides: strides of the levels, the finest first.

    Returns:
        One tuple of sizes in pixels for each level.
    """
    if kind == "retinanet":
        return tuple(tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in strides)
    if kind == "fcos":
        return tuple((stride,) for stride in strides)
    octaves = tuple((8 * stride,) for stride in strides)
    return octaves if {size for (size,) in octaves} >= set(OCTAVES) else (OCTAVES,) * len(strides)


def check_anchors(backbone: BackboneSpec, **options: Any) -> None:
    """Check the pyramid, the anchors and the overlap thresholds of a detector.

    Args:
        backbone: spec of the backbone.
        **options: options of the head.

    Raises:
        OptionError: `anchor_sizes` or `aspect_ratios` does not fit the levels, or two thresholds contradict each other.
    """
    check_pyramid(backbone, **options)
    for kind in ("", "rpn_", "box_"):
        low, high = options.get(f"{kind}bg_iou_thresh", 0.0), options.get(f"{kind}fg_iou_thresh", 1.0)
        if low > high:
            raise OptionError(
                f"{kind}bg_iou_thresh={low} exceeds {kind}fg_iou_thresh={high}; lower it to {high} or less"
            )
    levels = list(pyramid_taps(backbone, **{name: options[name] for name in PYRAMID_OPTIONS}))
    for option in ANCHORS:
        values = options[option]
        if values is not None and len(values) != len(levels):
            raise OptionError(
                f"{option} is for {len(values)} levels, but the head has {len(levels)}: {', '.join(levels)}; give one "
                "entry for each level"
            )
    sizes, ratios = (options[option] or ((None,),) * len(levels) for option in ANCHORS)
    most = max(len(size) * len(ratio) for size, ratio in zip(sizes, ratios, strict=True))
    if most > MOST_ANCHORS:
        raise OptionError(
            f"anchor_sizes and aspect_ratios define {most:,} anchors per location, but at most {MOST_ANCHORS:,} are "
            "allowed; give fewer"
        )
    if len({len(size) * len(ratio) for size, ratio in zip(sizes, ratios, strict=True)}) > 1:
        raise OptionError(
            "anchor_sizes and aspect_ratios define different numbers of anchors per level; use the same number for all"
        )


def check_groups(backbone: BackboneSpec, *, out_channels: int, **options: Any) -> None:
    """Check that FCOS can normalize its channels in groups.

    Args:
        backbone: spec of the backbone.
        out_channels: channels of the pyramid.
        **options: other options of the head.

    Raises:
        OptionError: `out_channels` is not a multiple of 32.
    """
    check_pyramid(backbone, out_channels=out_channels, **options)
    if out_channels % GROUPS:
        raise OptionError(
            f"head 'fcos' uses group norm with {GROUPS} groups; out_channels must be a multiple of {GROUPS}, got "
            f"{out_channels}"
        )


def extra_channels(width: float) -> tuple[int, ...]:
    """Return the channels of SSD's extra layers, scaled by `width` as in the papers' detection code.

    The channels are truncated and at least 16, as in `feature_map_generators.py` of TensorFlow's Object Detection API
    and in torchvision.
    """
    return tuple(max(LEAST_CHANNELS, int(channels * width)) for channels in SSDLITE_EXTRA)


def image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return the (height, width) that SSD resizes images to."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
