"""SSDLite as a module: torchvision's SSD with SSDLite's predictors on our taps."""

# torch.jit.script reads annotations as objects, not as strings.
# ruff: noqa: UP006, UP035
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import Any, Dict

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from featuretap.heads.modules.detection import DetectionHead
from featuretap.heads.ssdlite import extra_channels, fixed_size
from featuretap.specs import BackboneSpec

__all__ = ["ExtraLayers", "ReducedBoxGenerator", "ssdlite"]

RATIOS = [2, 3]
"""Of boxes, beside 1. With the inverses that makes six boxes at each place: two squares and two of each ratio."""

SMALLEST, LARGEST = 0.2, 0.95
"""Scales of the boxes of the finest and of the coarsest map, of the image."""

# Of the papers' detection code, and of torchvision's.
NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)


class ExtraLayers(nn.Module):
    """The taps (N, C, H', W'), and maps of layers that follow them, each half as large as the one before."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.extra = nn.ModuleList(_halving(before, after) for before, after in pairwise(channels))
        for module in self.extra.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return all maps, the finest first."""
        found: Dict[str, Tensor] = {}
        feature = torch.empty(0)
        for index, feature in enumerate(maps.values()):
            found[str(index)] = feature
        for layer in self.extra:
            feature = layer(feature)
            found[str(len(found))] = feature
        return found


class ReducedBoxGenerator(DefaultBoxGenerator):  # type: ignore[misc]
    """Default boxes with three at each place of the finest map: scale 0.1, and of its own scale ratios 2 and 1/2.

    TensorFlow's `reduce_boxes_in_lowest_layer` (object detection, `multiple_grid_anchor_generator.py`).
    """

    def _generate_wh_pairs(
        self, num_outputs: int, dtype: torch.dtype = torch.float32, device: Any = "cpu"
    ) -> list[Tensor]:
        _, *others = super()._generate_wh_pairs(num_outputs, dtype, device)
        scale, root = self.scales[0], sqrt(2)
        lowest = [[0.1, 0.1], [scale * root, scale / root], [scale / root, scale * root]]
        return [torch.as_tensor(lowest, dtype=dtype, device=device), *others]

    def num_anchors_per_location(self) -> list[int]:
        """Return the number of boxes at each place of each map."""
        _, *others = super().num_anchors_per_location()
        return [3, *others]


def ssdlite(
    backbone: BackboneSpec,
    *,
    num_classes: int,
    size: int | Sequence[int],
    reduce_lowest_anchors: bool,
    **options: Any,
) -> DetectionHead:
    """Return the head for the taps of a backbone.

    Args:
        backbone: the resolved spec.
        num_classes: the background included.
        size: pixels that images are resized to, one number or (height, width).
        reduce_lowest_anchors: whether the finest map has three boxes at each place in place of six.
        **options: of torchvision's `SSD`, under its names.
    """
    taps = [tap.channels for tap in backbone.taps.values()]
    channels = [*taps, *extra_channels(backbone.width)]
    neck = ExtraLayers(channels[len(taps) - 1 :])
    generator = ReducedBoxGenerator if reduce_lowest_anchors else DefaultBoxGenerator
    boxes = generator([RATIOS] * len(channels), min_ratio=SMALLEST, max_ratio=LARGEST)
    predictor = SSDLiteHead(channels, boxes.num_anchors_per_location(), num_classes, NORM)
    height, width = fixed_size(size)
    return DetectionHead(neck, SSD(neck, boxes, (width, height), num_classes, head=predictor, **options))


def _halving(before: int, after: int) -> nn.Sequential:
    layer = partial(Conv2dNormActivation, norm_layer=NORM, activation_layer=nn.ReLU6)
    inner = after // 2
    return nn.Sequential(
        layer(before, inner, kernel_size=1),
        layer(inner, inner, kernel_size=3, stride=2, groups=inner),
        layer(inner, after, kernel_size=1),
    )
