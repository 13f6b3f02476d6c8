"""LR-ASPP and DeepLabV3 as PyTorch modules. DeepLabV3 is torchvision's head."""

# TorchScript does not support annotations as strings.
# ruff: noqa: UP006, UP035
from collections.abc import Sequence
from typing import Any, Dict

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import Conv2dNormActivation

from featuretap.heads.modules.models import single_image_error
from featuretap.specs import BackboneSpec

GATES = {"hard_sigmoid": nn.Hardsigmoid, "sigmoid": nn.Sigmoid}


class LRASPPHead(nn.Module):
    """The LR-ASPP head: a fine and a coarse map → {"out": logits (N, num_classes, H', W')}, of the fine map's size.

    The gate is computed from the mean of the coarse map, or from means over windows of 49×49 with strides 16×20. The
    paper chose these windows for Cityscapes, whose maps are 65×129 at stride 16. On smaller maps, the windows are as
    large as the map.
    """

    def __init__(
        self,
        taps: "tuple[str, str]",
        windows: bool,
        features: nn.Module,
        gate: nn.Module,
        low_classifier: nn.Module,
        high_classifier: nn.Module,
    ) -> None:
        super().__init__()
        self.low, self.high = taps
        self.windows = windows
        self.features = features
        self.gate = gate
        self.low_classifier = low_classifier
        self.high_classifier = high_classifier

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return the logits from a dict of `maps`."""
        fine, coarse = maps[self.low], maps[self.high]
        if self.windows:
            means = average_windows(coarse)
            gate = F.interpolate(self.gate(means), size=coarse.shape[-2:], mode="bilinear", align_corners=False)
        else:
            gate = self.gate(coarse.mean([2, 3], keepdim=True))
        features = self.features(coarse)
        gated = F.interpolate(features * gate, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": self.low_classifier(fine) + self.high_classifier(gated)}


@torch.fx.wrap
def average_windows(x: Tensor) -> Tensor:
    """Return the means of `x` (N, C, H, W) over windows of 49×49 with strides 16×20, cropped to the size of the map.

    FX records the call as one node, because it cannot trace a size that depends on the image.
    """
    height, width = x.shape[-2:]
    return F.avg_pool2d(x, [min(49, height), min(49, width)], stride=[16, 20])


def lraspp(
    backbone: BackboneSpec, *, num_classes: int, inter_channels: int, pooling: str, gate: str, gate_bias: bool
) -> LRASPPHead:
    """Return the LR-ASPP head for the two taps of `backbone`, in either order.

    The options are declared in `featuretap.heads.segmentation`.
    """
    (low, fine), (high, coarse) = sorted(backbone.taps.items(), key=lambda named: named[1].stride)
    return LRASPPHead(
        (low, high),
        pooling == "window",
        Conv2dNormActivation(coarse.channels, inter_channels, 1),
        nn.Sequential(nn.Conv2d(coarse.channels, inter_channels, 1, bias=gate_bias), GATES[gate]()),
        nn.Conv2d(fine.channels, num_classes, 1),
        nn.Conv2d(inter_channels, num_classes, 1),
    )


class DeepLabV3Head(nn.Module):
    """The DeepLabV3 head: one map → {"out": logits (N, num_classes, H', W')} at the size of the map."""

    def __init__(self, tap: str, classifier: nn.Module) -> None:
        super().__init__()
        self.tap = tap
        self.classifier = classifier

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return the logits.

        Args:
            maps: the taps of the backbone.

        Returns:
            {"out": logits}.

        Raises:
            OptionError: the head trains on a single image, whose map is pooled to one value per channel.
        """
        if not is_scripting():
            self._check_batch(maps[self.tap])
        return {"out": self.classifier(maps[self.tap])}

    @torch.jit.unused
    def _check_batch(self, x: Tensor) -> None:
        pooling: Any = self.classifier[0].convs[-1]  # type: ignore[index]
        trains = any(isinstance(module, nn.BatchNorm2d) and module.training for module in pooling)
        # FX traces with a proxy, which has no length.
        if trains and isinstance(x, Tensor) and len(x) == 1:
            raise single_image_error("deeplab_v3")


class AuxiliaryDeepLabV3Head(DeepLabV3Head):
    """DeepLabV3 with an auxiliary output: two maps → {"out": …, "aux": …}, logits (N, num_classes, H', W').

    The logits have the sizes of the maps. The auxiliary output is for training; its head is FCN's (arXiv 1411.4038).
    """

    def __init__(self, tap: str, classifier: nn.Module, auxiliary_tap: str, auxiliary: nn.Module) -> None:
        super().__init__(tap, classifier)
        self.auxiliary_tap = auxiliary_tap
        self.auxiliary = auxiliary

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return both logits.

        Args:
            maps: the taps of the backbone.

        Returns:
            {"out": logits, "aux": auxiliary logits}.

        Raises:
            OptionError: as for `DeepLabV3Head`.
        """
        if not is_scripting():
            self._check_batch(maps[self.tap])
        return {"out": self.classifier(maps[self.tap]), "aux": self.auxiliary(maps[self.auxiliary_tap])}


def deeplab_v3(
    backbone: BackboneSpec, *, num_classes: int, auxiliary: bool, atrous_rates: Sequence[int]
) -> DeepLabV3Head:
    """Return the DeepLabV3 head for the taps of `backbone`; with `auxiliary`, the second feeds the auxiliary output."""
    (name, tap), *others = backbone.taps.items()
    classifier = DeepLabHead(tap.channels, num_classes, atrous_rates)
    if not auxiliary:
        return DeepLabV3Head(name, classifier)
    ((auxiliary_name, auxiliary_tap),) = others
    return AuxiliaryDeepLabV3Head(name, classifier, auxiliary_name, FCNHead(auxiliary_tap.channels, num_classes))
