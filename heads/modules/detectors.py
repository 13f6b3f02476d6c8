"""RetinaNet, FCOS, Faster R-CNN and Mask R-CNN: torchvision's detectors on our pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from featuretap.heads.detectors import anchor_sizes
from featuretap.heads.fpn import PYRAMID_OPTIONS
from featuretap.heads.modules.detection import DetectionHead
from featuretap.heads.modules.fpn import Pyramid, fpn
from featuretap.specs import BackboneSpec

__all__ = ["RCNNHead", "faster_rcnn", "fcos", "mask_rcnn", "retinanet"]

RATIOS = (0.5, 1.0, 2.0)

BOX, MASK = 7, 14
"""Pixels of the square that torchvision crops around a box, for its label and for its mask."""


def retinanet(backbone: BackboneSpec, *, num_classes: int, **options: Any) -> DetectionHead:
    """Return the head for the taps of a backbone; `featuretap.heads.detectors` says what the options are."""
    pyramid, rest = _pyramid(backbone, options)
    anchors = _anchors("retinanet", pyramid, rest)
    return DetectionHead(pyramid, RetinaNet(pyramid, num_classes, anchor_generator=anchors, **rest))


def fcos(backbone: BackboneSpec, *, num_classes: int, **options: Any) -> DetectionHead:
    """Return the head for the taps of a backbone; `featuretap.heads.detectors` says what the options are."""
    pyramid, rest = _pyramid(backbone, options)
    sizes = anchor_sizes("fcos", [tap.stride for tap in pyramid.taps.values()])
    anchors = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    return DetectionHead(pyramid, FCOS(pyramid, num_classes, anchor_generator=anchors, **rest))


def faster_rcnn(backbone: BackboneSpec, *, num_classes: int, **options: Any) -> RCNNHead:
    """Return the head for the taps of a backbone; `featuretap.heads.detectors` says what the options are."""
    pyramid, rest = _pyramid(backbone, options)
    anchors = _anchors("faster_rcnn", pyramid, rest)
    crops = {"box_roi_pool": _crops(backbone, pyramid, BOX)}
    return RCNNHead(pyramid, FasterRCNN(pyramid, num_classes, rpn_anchor_generator=anchors, **crops, **rest))


def mask_rcnn(backbone: BackboneSpec, *, num_classes: int, **options: Any) -> RCNNHead:
    """Return the head for the taps of a backbone; `featuretap.heads.detectors` says what the options are."""
    pyramid, rest = _pyramid(backbone, options)
    anchors = _anchors("mask_rcnn", pyramid, rest)
    crops = {"box_roi_pool": _crops(backbone, pyramid, BOX), "mask_roi_pool": _crops(backbone, pyramid, MASK)}
    return RCNNHead(pyramid, MaskRCNN(pyramid, num_classes, rpn_anchor_generator=anchors, **crops, **rest))


class RCNNHead(DetectionHead):
    """A detection head that looks at boxes a second time, on crops (K, C, 7, 7) of its maps (N, C, H', W')."""

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the predictors say at every place of every level, and of as many boxes as are looked at."""
        levels = list(self.neck(maps).values())
        proposing: Any = self.rpn
        heads: Any = self.roi_heads
        objectness, deltas = proposing.head(levels)
        channels = levels[0].shape[1]
        crops = levels[0].new_zeros(proposing._post_nms_top_n["testing"], channels, BOX, BOX)
        logits, _ = heads.box_predictor(heads.box_head(crops))
        said = {"objectness": objectness[0], "deltas": deltas[0], "logits": logits}
        if heads.has_mask():
            crops = levels[0].new_zeros(heads.detections_per_img, channels, MASK, MASK)
            said["masks"] = heads.mask_predictor(heads.mask_head(crops))
        return said


def _pyramid(backbone: BackboneSpec, options: Mapping[str, Any]) -> tuple[Pyramid, dict[str, Any]]:
    """Return the pyramid, and the options that are the detector's own."""
    pyramid = fpn(backbone, **{name: options[name] for name in PYRAMID_OPTIONS})
    rest = {name: value for name, value in options.items() if name not in PYRAMID_OPTIONS}
    return pyramid, rest


def _anchors(kind: str, pyramid: Pyramid, options: dict[str, Any]) -> AnchorGenerator:
    """Return the anchors, and take their options away."""
    strides = [tap.stride for tap in pyramid.taps.values()]
    sizes = options.pop("anchor_sizes") or anchor_sizes(kind, strides)
    ratios = options.pop("aspect_ratios") or (RATIOS,) * len(strides)
    return AnchorGenerator(tuple(map(tuple, sizes)), tuple(map(tuple, ratios)))


def _crops(backbone: BackboneSpec, pyramid: Pyramid, size: int) -> MultiScaleRoIAlign:
    # Boxes are cropped from the levels of the backbone; those added above are for proposals only.
    return MultiScaleRoIAlign(pyramid.levels[: len(backbone.taps)], output_size=size, sampling_ratio=2)
