"""SSD and SSDLite as PyTorch modules: torchvision's SSD with extra layers after the taps."""

# TorchScript does not support annotations as strings.
# ruff: noqa: UP006, UP035
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import Any, Dict

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead, SSDScoringHead
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import Conv2dNormActivation, batched_nms, clip_boxes_to_image

from featuretap.backbones.modules import SamePadding
from featuretap.heads.detection import (
    LARGEST,
    SMALLEST,
    SMALLEST_ANCHOR,
    SSD_RATIOS,
    extra_channels,
    image_size,
)
from featuretap.heads.modules.detection import DetectionHead
from featuretap.specs import BackboneSpec
from featuretap.specs.layers import SAME

# As in the papers' detection code, and in torchvision.
SSD_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)

DEVIATION = 0.03
"""Standard deviation of the initial weights, as in the papers' detection code."""


class ExtraLayers(nn.Module):
    """The taps (N, C, H', W'), followed by the maps of extra layers, each half as large as the previous map.

    Args:
        layers: extra layers; each maps the last map to the next.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.extra = nn.ModuleList(layers)
        initialize(self.extra)

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return all maps, the finest first."""
        levels: Dict[str, Tensor] = {}
        feature = torch.empty(0)
        for index, feature in enumerate(maps.values()):
            levels[str(index)] = feature
        for layer in self.extra:
            feature = layer(feature)
            levels[str(len(levels))] = feature
        return levels


class ReducedBoxGenerator(DefaultBoxGenerator):  # type: ignore[misc]
    """Default boxes with three per location on the finest map: a square of scale 0.1, and aspect ratios 2 and 1/2.

    As with TensorFlow's `reduce_boxes_in_lowest_layer` (object detection, `multiple_grid_anchor_generator.py`).
    """

    def _generate_wh_pairs(
        self, num_outputs: int, dtype: torch.dtype = torch.float32, device: Any = "cpu"
    ) -> list[Tensor]:
        _, *others = super()._generate_wh_pairs(num_outputs, dtype, device)
        scale, root = self.scales[0], sqrt(2)
        lowest = [[SMALLEST_ANCHOR, SMALLEST_ANCHOR], [scale * root, scale / root], [scale / root, scale * root]]
        return [torch.as_tensor(lowest, dtype=dtype, device=device), *others]

    def num_anchors_per_location(self) -> list[int]:
        """Return the number of boxes per location, for each map."""
        _, *others = super().num_anchors_per_location()
        return [3, *others]


class ConvolutionPredictor(SSDHead):  # type: ignore[misc]
    """SSD's predictors, one convolution per map: maps (N, C, H', W') → (N, A, num_classes) and (N, A, 4).

    Args:
        channels: channels of each map.
        anchors: boxes per location, for each map.
        num_classes: number of classes, including the background.
        kernel: height and width of the kernels in pixels.
    """

    def __init__(self, channels: Sequence[int], anchors: Sequence[int], num_classes: int, kernel: int) -> None:
        nn.Module.__init__(self)
        for name, columns in (("classification_head", num_classes), ("regression_head", 4)):
            predictors = nn.ModuleList(
                nn.Conv2d(inner, columns * boxes, kernel, padding=kernel // 2)
                for inner, boxes in zip(channels, anchors, strict=True)
            )
            initialize(predictors)
            self.add_module(name, SSDScoringHead(predictors, columns))


class SigmoidSSD(SSD):  # type: ignore[misc]
    """torchvision's SSD with an independent score for each class, as in TensorFlow's detectors.

    A score is the sigmoid of a logit. The loss is the binary cross-entropy of all classes, including the background.
    """

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses of torchvision's SSD, with binary cross-entropy in place of cross-entropy."""
        logits = with_remainder(head_outputs["cls_logits"])
        losses: dict[str, Tensor] = super().compute_loss(
            targets, {**head_outputs, "cls_logits": logits}, anchors, matched_idxs
        )
        return losses

    def postprocess_detections(
        self, head_outputs: dict[str, Tensor], image_anchors: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the boxes of each image as in torchvision's SSD, scored by sigmoids."""
        all_scores = head_outputs["cls_logits"][..., 1:].sigmoid()
        found = []
        outputs = zip(head_outputs["bbox_regression"], all_scores, image_anchors, image_shapes, strict=True)
        for deltas, scores, anchors, shape in outputs:
            boxes = clip_boxes_to_image(self.box_coder.decode_single(deltas, anchors), shape)
            best, places = scores.T.topk(min(self.topk_candidates, len(scores)))
            labels = torch.arange(1, len(best) + 1, device=best.device)[:, None].expand_as(best)
            candidates = best > self.score_thresh
            boxes, best, labels = boxes[places[candidates]], best[candidates], labels[candidates]
            kept = batched_nms(boxes, best, labels, self.nms_thresh)[: self.detections_per_img]
            found.append({"boxes": boxes[kept], "scores": best[kept], "labels": labels[kept]})
        return found


class AsymmetricTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform to a fixed size, with the resizing of TensorFlow 1 (`resize_asymmetrically`)."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return an `image` (C, H, W) and its boxes in `target`, resized to the size that the detector reads."""
        width, height = self.fixed_size
        resized = resize_asymmetrically(image, height, width)
        if target is None:
            return resized, None
        boxes = resize_boxes(target["boxes"], image.shape[-2:], (height, width))
        return resized, {**target, "boxes": boxes}


def resize_asymmetrically(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image (C, H, W) resized bilinearly to (C, height, width), as in TensorFlow 1.

    Output pixel i is interpolated at i times the ratio of the sizes, so the first pixels are aligned instead of the
    corners (`ResizeBilinear` without `half_pixel_centers`; "asymmetric" in ONNX).
    """
    for dimension, size in ((-2, height), (-1, width)):
        original = image.shape[dimension]
        places = torch.arange(size, dtype=torch.float32, device=image.device) * (original / size)
        before = places.long().clamp(max=original - 1)
        share = (places - before).to(image.dtype)
        share = share[:, None] if dimension == -2 else share
        first, second = (image.index_select(dimension, at) for at in (before, (before + 1).clamp(max=original - 1)))
        image = first + (second - first) * share
    return image


def with_remainder(logits: Tensor) -> Tensor:
    """Return logits (…, C + 1) whose cross-entropy is the binary cross-entropy of `logits` (…, C), summed over classes.

    In a softmax over C + 1 classes, class c has the probability exp(x_c) / Z. With Z = Π (1 + exp(x_i)), the negative
    logarithm of this probability is the binary cross-entropy for a target that is c and no other class. The last logit
    makes the sum equal to Z, and is never a target.
    """
    logits = logits.float()
    total = nn.functional.softplus(logits).sum(-1, keepdim=True)
    share = logits.logsumexp(-1, keepdim=True) - total
    # If one logit dominates, the share rounds to 1, and the logarithm of the remainder would be -inf.
    return torch.cat([logits, total + torch.log1p(-share.exp().clamp(max=1 - 1e-6))], dim=-1)


def ssdlite(backbone: BackboneSpec, *, num_classes: int, **options: Any) -> DetectionHead:
    """Return the SSDLite head for the taps of a backbone. `featuretap.heads.detection` declares the options.

    Args:
        backbone: the resolved spec of the backbone.
        num_classes: number of classes, including the background.
        **options: other options of the head.

    Returns:
        The head.
    """

    def extra_layer(before: int, after: int) -> nn.Sequential:
        inner = after // 2
        return nn.Sequential(
            _layer(before, inner), _strided(backbone, inner, inner, groups=inner), _layer(inner, after)
        )

    return _ssd(backbone, extra_layer, partial(SSDLiteHead, norm_layer=SSD_NORM), num_classes, **options)


def ssd(backbone: BackboneSpec, *, num_classes: int, predictor_kernel: int, **options: Any) -> DetectionHead:
    """Return the SSD head for the taps of a backbone. `featuretap.heads.detection` declares the options.

    Args:
        backbone: the resolved spec of the backbone.
        num_classes: number of classes, including the background.
        predictor_kernel: height and width of the predictors' kernels in pixels.
        **options: other options of the head.

    Returns:
        The head.
    """

    def extra_layer(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(_layer(before, after // 2), _strided(backbone, after // 2, after))

    return _ssd(backbone, extra_layer, partial(ConvolutionPredictor, kernel=predictor_kernel), num_classes, **options)


def initialize(layers: nn.Module) -> None:
    """Initialize the convolutions in `layers` as in the papers' detection code."""
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _ssd(
    backbone: BackboneSpec,
    extra_layer: Any,
    predictor: Any,
    num_classes: int,
    *,
    size: int | Sequence[int],
    reduce_lowest_anchors: bool,
    clip_anchors: bool,
    resizing: str,
    scores: str,
    **options: Any,
) -> DetectionHead:
    taps = [tap.channels for tap in backbone.taps.values()]
    channels = [*taps, *extra_channels(backbone.width)]
    neck = ExtraLayers([extra_layer(before, after) for before, after in pairwise(channels[len(taps) - 1 :])])
    generator = ReducedBoxGenerator if reduce_lowest_anchors else DefaultBoxGenerator
    ratios = [list(SSD_RATIOS)] * len(channels)
    boxes = generator(ratios, min_ratio=SMALLEST, max_ratio=LARGEST, clip=clip_anchors)
    head = predictor(channels, boxes.num_anchors_per_location(), num_classes)
    height, width = image_size(size)
    kind = SigmoidSSD if scores == "sigmoid" else SSD
    detector = kind(neck, boxes, (width, height), num_classes, head=head, **options)
    if resizing == "asymmetric":
        transform = detector.transform
        settings = {"size_divisible": transform.size_divisible, "fixed_size": transform.fixed_size}
        detector.transform = AsymmetricTransform(
            transform.min_size, transform.max_size, transform.image_mean, transform.image_std, **settings
        )
    return DetectionHead(neck, detector)


def _layer(before: int, after: int, kernel: int = 1, **options: Any) -> nn.Sequential:
    settings = {"norm_layer": SSD_NORM, "activation_layer": nn.ReLU6, **options}
    layer: nn.Sequential = Conv2dNormActivation(before, after, kernel_size=kernel, **settings)
    return layer


def _strided(backbone: BackboneSpec, before: int, after: int, groups: int = 1) -> nn.Sequential:
    if backbone.padding != SAME:
        return _layer(before, after, 3, stride=2, groups=groups)
    layer = _layer(before, after, 3, stride=2, groups=groups, padding=0)
    return nn.Sequential(OrderedDict([("pad", SamePadding(3, 2)), *layer.named_children()]))
