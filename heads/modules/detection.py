"""Detection heads as PyTorch modules: torchvision's detectors on featuretap's pyramid.

A torchvision detector contains its backbone, while a featuretap model keeps backbone and head separate. A head
therefore holds the neck and the other parts of a detector, and assembles the detector around backbone and head on every
call. The forward passes are torchvision's own.
"""

# TorchScript does not support annotations as strings.
# ruff: noqa: UP006, UP035
from collections.abc import Mapping
from typing import Any, Dict

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from featuretap.heads.detection import anchor_sizes
from featuretap.heads.fpn import PYRAMID_OPTIONS
from featuretap.heads.modules.fpn import Pyramid, fpn
from featuretap.specs import BackboneSpec
from featuretap.specs.preprocessing import Preprocessing

BOX, MASK = 7, 14
"""Size in pixels of the crops that torchvision classifies, and of those that it predicts masks from."""


class NeckedBackbone(nn.Module):
    """A backbone with a neck, in the form that torchvision's detectors take.

    It maps images (N, in_channels, H, W) to a dict of maps (N, C, H', W'), the finest first.
    """

    def __init__(self, body: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.neck = neck

    def forward(self, images: Tensor) -> Dict[str, Tensor]:
        """Return the maps."""
        return self.neck(self.body(images))


class DetectionHead(nn.Module):
    """The neck and the other parts of a torchvision detector. The detector's `head` is called `predictor` here.

    Args:
        neck: module that maps the dict of taps to the dict of maps (N, C, H', W') that the detector reads.
        detector: a torchvision detector with the neck in place of a backbone.
    """

    def __init__(self, neck: nn.Module, detector: nn.Module) -> None:
        super().__init__()
        self.neck = neck
        for name, part in detector.named_children():
            if name != "backbone":
                self.add_module("predictor" if name == "head" else name, part)
        # The rest of the detector is data: thresholds, matchers, coders. The tuple hides it from nn.Module, which would
        # register it as a submodule.
        detector._modules = {}
        self._shell = (detector,)

    def detector_around(self, backbone: nn.Module) -> nn.Module:
        """Return torchvision's detector with `backbone` and the parts of this head, in the mode of this head."""
        (shell,) = self._shell
        detector = object.__new__(type(shell))
        detector.__dict__.update(shell.__dict__)
        necked = NeckedBackbone(backbone, self.neck)
        # train() would also change the parts, some of which may be in evaluation mode on purpose.
        necked.training = detector.training = self.training
        parts = {"head" if name == "predictor" else name: part for name, part in self._modules.items()}
        del parts["neck"]
        detector._modules = {"backbone": necked, **parts}
        return detector

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return the raw predictions at every location of every level, before boxes are decoded."""
        predictions: Dict[str, Tensor] = self.predictor(list(self.neck(maps).values()))  # type: ignore[operator]
        return predictions

    def normalize_as(self, preprocessing: Preprocessing) -> None:
        """Make the detector normalize images with the `preprocessing` of the weights."""
        transform: Any = self.transform
        transform.image_mean = list(preprocessing.mean)
        transform.image_std = list(preprocessing.std)


class RCNNHead(DetectionHead):
    """A two-stage detection head. Its second stage reads crops (K, C, 7, 7) of the maps (N, C, H', W')."""

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the raw predictions at every location of every level, and for the maximum number of crops.

        The crops are zeros, because counting and exporting do not depend on their content.
        """
        levels = list(self.neck(maps).values())
        rpn: Any = self.rpn
        heads: Any = self.roi_heads
        objectness, deltas = rpn.head(levels)
        channels = levels[0].shape[1]
        crops = levels[0].new_zeros(rpn._post_nms_top_n["testing"], channels, BOX, BOX)
        logits, _ = heads.box_predictor(heads.box_head(crops))
        predictions = {"objectness": objectness[0], "deltas": deltas[0], "logits": logits}
        if heads.has_mask():
            crops = levels[0].new_zeros(heads.detections_per_img, channels, MASK, MASK)
            predictions["masks"] = heads.mask_predictor(heads.mask_head(crops))
        return predictions


def retinanet(backbone: BackboneSpec, *, num_classes: int, **options: Any) -> DetectionHead:
    """Return the RetinaNet head for the taps of `backbone`. `featuretap.heads.detection` declares the options."""
    pyramid, anchors, rest = _pyramid_and_anchors("retinanet", backbone, options)
    return DetectionHead(pyramid, RetinaNet(pyramid, num_classes, anchor_generator=anchors, **rest))


def fcos(backbone: BackboneSpec, *, num_classes: int, **options: Any) -> DetectionHead:
    """Return the FCOS head for the taps of `backbone`. `featuretap.heads.detection` declares the options."""
    # FCOS has no anchors, but torchvision scales boxes by one square anchor per location.
    pyramid, anchors, rest = _pyramid_and_anchors("fcos", backbone, options, ratios=(1.0,))
    return DetectionHead(pyramid, FCOS(pyramid, num_classes, anchor_generator=anchors, **rest))


def faster_rcnn(backbone: BackboneSpec, *, num_classes: int, **options: Any) -> RCNNHead:
    """Return the Faster R-CNN head for the taps of `backbone`. `featuretap.heads.detection` declares the options."""
    pyramid, anchors, rest = _pyramid_and_anchors("faster_rcnn", backbone, options)
    crops = {"box_roi_pool": _crops(backbone, pyramid, BOX)}
    return RCNNHead(pyramid, FasterRCNN(pyramid, num_classes, rpn_anchor_generator=anchors, **crops, **rest))


def mask_rcnn(backbone: BackboneSpec, *, num_classes: int, **options: Any) -> RCNNHead:
    """Return the Mask R-CNN head for the taps of `backbone`. `featuretap.heads.detection` declares the options."""
    pyramid, anchors, rest = _pyramid_and_anchors("mask_rcnn", backbone, options)
    crops = {"box_roi_pool": _crops(backbone, pyramid, BOX), "mask_roi_pool": _crops(backbone, pyramid, MASK)}
    return RCNNHead(pyramid, MaskRCNN(pyramid, num_classes, rpn_anchor_generator=anchors, **crops, **rest))


def _pyramid_and_anchors(
    kind: str, backbone: BackboneSpec, options: Mapping[str, Any], ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
) -> tuple[Pyramid, AnchorGenerator, dict[str, Any]]:
    """Return the pyramid, the anchors on its levels, and the options to pass to torchvision's detector."""
    pyramid = fpn(backbone, **{name: options[name] for name in PYRAMID_OPTIONS})
    rest = {name: value for name, value in options.items() if name not in PYRAMID_OPTIONS}
    strides = [tap.stride for tap in pyramid.taps.values()]
    sizes = rest.pop("anchor_sizes", None) or anchor_sizes(kind, strides)
    by_level = rest.pop("aspect_ratios", None) or (ratios,) * len(strides)
    return pyramid, AnchorGenerator(tuple(map(tuple, sizes)), tuple(map(tuple, by_level))), rest


def _crops(backbone: BackboneSpec, pyramid: Pyramid, size: int) -> MultiScaleRoIAlign:
    # Boxes are cropped from the levels of the backbone's taps. Extra levels only produce proposals.
    return MultiScaleRoIAlign(pyramid.levels[: len(backbone.taps)], output_size=size, sampling_ratio=2)
