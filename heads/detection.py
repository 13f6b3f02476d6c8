"""Detection heads: torchvision's detectors on a feature pyramid, SSD and SSDLite.

RetinaNet (arXiv 1708.02002), FCOS (arXiv 1904.01355), Faster R-CNN (arXiv 1506.01497, on a pyramid as in arXiv
1612.03144, section 4), Mask R-CNN (arXiv 1703.06870), SSD (arXiv 1512.02325) and SSDLite (MobileNetV2, arXiv
1801.04381, section 6.2; MobileNetV3, arXiv 1905.02244, section 6.3).

Options have torchvision's names and defaults; those of the pyramid come before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featuretap.heads.fpn import GROUPS, PYRAMID_OPTIONS, check_pyramid, pyramid_taps
from featuretap.specs import BackboneSpec, HeadSpec
from featuretap.specs.validation import MOST, Option, boolean, choice, count, is_list_of, is_number, is_whole, number
from featuretap.support.errors import OptionError

OCTAVES = (32, 64, 128, 256, 512)
"""Sizes of the anchors of the FPN paper (section 4.1), in pixels of the resized image."""

SSDLITE_EXTRA = (512, 256, 256, 128)

SSD_RATIOS = (2, 3)
"""Of SSDLite's boxes, beside 1. With the inverses that makes six boxes at each place: two squares and two of each."""

SMALLEST, LARGEST = 0.2, 0.95
"""Scales of SSDLite's boxes on the finest and on the coarsest map, as fractions of the image."""

SMALLEST_ANCHOR = 0.1
"""Scale of the square in place of two on the finest map, where that has three boxes at each place."""

LEAST_CHANNELS = 16
MOST_LEVELS = 32


LARGEST_FLOAT32 = 3e38


def share(default: float) -> Option:
    """Return an option that is an overlap, a score or a proportion."""
    return number(default, 0.0, 1.0)


def per_level(allowed: str) -> Option:
    """Return an option that has positive numbers for each level, and None by default."""

    def is_positive(value: Any) -> bool:
        return is_number(value, 0, MOST) and value > 0

    return Option(
        None,
        lambda value: value is None or is_list_of(value, lambda level: is_list_of(level, is_positive)),
        allowed,
    )


def is_side(value: Any) -> bool:
    """Return whether a value is a number of pixels that an image may have."""
    return is_whole(value, 1, MOST)


def is_finite(value: Any) -> bool:
    """Return whether a value is a number that single precision holds."""
    return is_number(value, -LARGEST_FLOAT32, LARGEST_FLOAT32)


PER_CHANNEL = Option(
    None,
    lambda value: value is None or is_list_of(value, is_finite, MOST),
    "None or a number for each channel, of values from 0 to 1",
)
NORMALISATION = {"image_mean": PER_CHANNEL, "image_std": PER_CHANNEL}
"""None is what the weights were trained with."""

RESIZING = {
    "min_size": Option(
        800,
        lambda value: is_side(value) or is_list_of(value, is_side),
        "a number of pixels, or several to choose from in training",
    ),
    "max_size": count(1333),
    **NORMALISATION,
}
"""torchvision's: images are resized to a shorter side of `min_size`, but to no longer side over `max_size`."""

P6P7 = {**PYRAMID_OPTIONS, "extra_levels": choice("p6p7", "pool", None)}
POOL = {**PYRAMID_OPTIONS, "extra_levels": choice("pool", "p6p7", None)}

ANCHORS = {
    "anchor_sizes": per_level("None or, for each level, its sizes in pixels, such as ((32,), (64,), (128,))"),
    "aspect_ratios": per_level("None or, for each level, height / width of its anchors, such as ((0.5, 1, 2),)"),
}

MOST_ANCHORS = 1_000
"""At each place of a map; each has weights of its own."""

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
    """Return the spec of a detector, which the function of its name in `heads.modules.detection` builds by default."""
    usual = {
        "consecutive": True,
        # Labels of COCO with the background and the numbers that it leaves out, which torchvision's detectors have.
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
    **NORMALISATION,
    "score_thresh": share(0.001),
    "nms_thresh": share(0.55),
    "detections_per_img": count(300),
    "topk_candidates": count(300),
    "iou_thresh": share(0.5),
    "positive_fraction": share(0.25),
}
"""By default the papers': three boxes at each place of the finest map, as TensorFlow's `reduce_boxes_in_lowest_layer`
has it. torchvision has six everywhere. All other defaults are those of torchvision's `ssdlite320`. TensorFlow's
detectors do not clip their anchors to the image's size, resize images so that the first pixels coincide, not the
corners ("asymmetric", as ONNX calls it), and most score each class by itself, by a sigmoid."""

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
    "SSD detection, with ordinary convolutions",
    SSDLITE.reads,
    {**SSD_OPTIONS, "predictor_kernel": choice(3, 1)},
    min_classes=2,
    factory="featuretap.heads.modules.ssd:ssd",
    nodes="featuretap.heads.nodes.detection:ssd_nodes",
    layouts={"tensorflow": "featuretap.heads.layouts.tensorflow:ssd"},
    per_class=tuple(f"predictor.classification_head.module_list.{level}." for level in range(MOST_LEVELS)),
)
"""SSD (arXiv 1512.02325) as in TensorFlow's Object Detection API: extra layers are a 1×1 and a 3×3 convolution, each
with norm and ReLU6, and a predictor is one convolution, of 3×3 in the paper and of 1×1 in many of its models."""


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


def boxes_and_masks(backbone: BackboneSpec, *, height: int, width: int, **options: Any) -> dict[str, Any]:
    """Return what Mask R-CNN predicts for one image: boxes, and for each the probabilities of its mask."""
    predicted = boxes(backbone, height=height, width=width, **options)
    return {**predicted, "masks": (*predicted["labels"], 1, height, width)}


def anchor_sizes(kind: str, strides: list[int]) -> tuple[tuple[int, ...], ...]:
    """Return the sizes of the anchors of each level.

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
    levels = list(pyramid_taps(backbone, **{name: options[name] for name in PYRAMID_OPTIONS}))
    for option in ANCHORS:
        values = options[option]
        if values is not None and len(values) != len(levels):
            raise OptionError(f"{option} is for {len(values)} levels, and there are {len(levels)}: {', '.join(levels)}")
    sizes, ratios = (options[option] or ((None,),) * len(levels) for option in ANCHORS)
    most = max(len(size) * len(ratio) for size, ratio in zip(sizes, ratios, strict=True))
    if most > MOST_ANCHORS:
        raise OptionError(
            f"anchor_sizes and aspect_ratios give {most:,} anchors at each place, and at most {MOST_ANCHORS:,} are "
            "possible; give fewer"
        )
    if len({len(size) * len(ratio) for size, ratio in zip(sizes, ratios, strict=True)}) > 1:
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


def extra_channels(width: float) -> tuple[int, ...]:
    """Return the channels of SSDLite's layers that follow the backbone, scaled as the papers' detection code does.

    By truncation, and not below 16 (`feature_map_generators.py` of TensorFlow's object detection; torchvision alike).
    """
    return tuple(max(LEAST_CHANNELS, int(channels * width)) for channels in SSDLITE_EXTRA)


def image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of SSDLite's images."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
