"""The feature pyramid as a PyTorch module, based on torchvision's."""

# TorchScript does not support annotations as strings.
# ruff: noqa: UP006, UP035
from collections import OrderedDict
from functools import partial
from typing import Any, Dict, List

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from featuretap.heads.fpn import GROUPS, pyramid_taps
from featuretap.specs import BackboneSpec


class Pyramid(nn.Module):
    """torchvision's FeaturePyramidNetwork: the taps of a backbone → dict of levels (N, out_channels, H', W').

    Args:
        pyramid: torchvision's module.
        taps: mapping from level to `Tap`.
        out_channels: channels of every level.
    """

    def __init__(self, pyramid: FeaturePyramidNetwork, taps: Dict[str, Any], out_channels: int) -> None:
        super().__init__()
        self.fpn = pyramid
        self.taps = taps
        self.levels: List[str] = list(taps)
        self.out_channels = out_channels

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return the levels, the finest first."""
        features = list(self.fpn(maps).values())
        pyramid: Dict[str, Tensor] = {}
        for level, feature in zip(self.levels, features):  # noqa: B905 - TorchScript does not support strict
            pyramid[level] = feature  # noqa: PERF403 - TorchScript does not support it
        return pyramid


NORMS: Dict[Any, Any] = {None: None, "batch_norm": nn.BatchNorm2d, "group_norm": partial(nn.GroupNorm, GROUPS)}


def fpn(
    backbone: BackboneSpec,
    *,
    out_channels: int,
    extra_levels: str | None,
    fpn_norm: str | None,
    depthwise: bool,
    num_classes: None = None,
) -> Pyramid:
    """Return the pyramid for the taps of `backbone`. `featuretap.heads.fpn` declares the options."""
    extra = {None: lambda: None, "pool": LastLevelMaxPool, "p6p7": lambda: LastLevelP6P7(out_channels, out_channels)}
    channels = [tap.channels for tap in backbone.taps.values()]
    pyramid = FeaturePyramidNetwork(channels, out_channels, extra[extra_levels](), NORMS[fpn_norm])
    if depthwise:
        for index in range(len(channels)):
            pyramid.layer_blocks[index] = _separable(out_channels, NORMS[fpn_norm])
        if extra_levels == "p6p7":
            for name in ("p6", "p7"):
                setattr(pyramid.extra_blocks, name, _separable(out_channels, None, stride=2))
    taps = pyramid_taps(backbone, out_channels=out_channels, extra_levels=extra_levels)
    return Pyramid(pyramid, taps, out_channels)


def _separable(channels: int, norm: Any, stride: int = 1) -> nn.Sequential:
    """Return a depthwise 3×3 and a 1×1 convolution, initialized like the full 3×3 convolution in torchvision."""
    depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    pointwise = Conv2dNormActivation(channels, channels, 1, norm_layer=norm, activation_layer=None)
    for convolution in (depthwise, pointwise[0]):
        nn.init.kaiming_uniform_(convolution.weight, a=1)
    if pointwise[0].bias is not None:
        nn.init.zeros_(pointwise[0].bias)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))
