"""Use featuretap backbones and pyramids in torchvision's detectors, and describe their maps as Detectron2 does."""

# torch.jit.script evaluates annotations.
# ruff: noqa: UP006, UP035
from dataclasses import dataclass
from typing import Dict, List

from torch import Tensor, nn

from featuretap.heads.modules.models import DetectionModel, PyramidModel
from featuretap.specs import Tap
from featuretap.support.errors import OptionError

__all__ = ["ShapeSpec", "TorchvisionBackbone", "as_torchvision", "output_shape"]

EXTRA = {0: (), 1: ("pool",), 2: ("p6", "p7")}
"""Number of levels that a pyramid adds → torchvision's names for them."""


@dataclass(frozen=True)
class ShapeSpec:
    """A map (N, channels, H', W'), with the fields of Detectron2's class of this name.

    Args:
        channels: number of channels.
        stride: ratio of the image size to the map size.
        height: always None, since it depends on the image.
        width: always None, since it depends on the image.
    """

    channels: int
    stride: int
    height: None = None
    width: None = None


class TorchvisionBackbone(nn.Module):
    """A backbone for torchvision's detectors.

    It returns its maps under the keys "0", "1", … and under torchvision's names for added levels.

    Args:
        body: a module that maps images to a dict of maps (N, C, H', W').
        keys: keys of the maps, in order.
        out_channels: number of channels of every map, which becomes an attribute. None if they differ; of torchvision's
            detectors, only SSD accepts such a backbone.
    """

    def __init__(self, body: nn.Module, keys: List[str], out_channels: "int | None") -> None:
        super().__init__()
        self.body = body
        self.keys = keys
        if out_channels is not None:
            self.out_channels = out_channels

    def forward(self, images: Tensor) -> Dict[str, Tensor]:
        """Return the maps of `images` (N, in_channels, H, W), finest first."""
        maps: Dict[str, Tensor] = {}
        for key, feature in zip(self.keys, self.body(images).values()):  # noqa: B905 - torch.jit.script knows no strict
            maps[key] = feature  # noqa: PERF403
        return maps


def as_torchvision(model: nn.Module) -> nn.Module:
    """Convert a model for use with torchvision's detectors. The modules are shared, not copied.

    A bare backbone or a pyramid becomes a `backbone` argument: it has `out_channels`, and its keys are "0", "1", … If
    the maps have different numbers of channels, there is no `out_channels`, and only torchvision's `SSD` accepts the
    backbone. A detection model becomes torchvision's own detector.

    Args:
        model: a backbone, pyramid or detector from `registry.build` or `registry.load`.

    Returns:
        The converted model.

    Raises:
        OptionError: the model does not return feature maps.
    """
    if isinstance(model, DetectionModel):
        return model.as_detector()
    channels = [tap.channels for tap in _taps(model).values()]
    levels = len(model.backbone.taps) if isinstance(model, PyramidModel) else len(channels)  # type: ignore[arg-type]
    keys = [str(index) for index in range(levels)]
    return TorchvisionBackbone(
        model, [*keys, *EXTRA[len(channels) - levels]], channels[0] if len(set(channels)) == 1 else None
    )


def output_shape(model: nn.Module) -> Dict[str, ShapeSpec]:
    """Return the channels and stride of a model's maps, as Detectron2's backbones do.

    Args:
        model: a bare backbone, or a backbone with a pyramid.

    Returns:
        Tap name → shape.

    Raises:
        OptionError: the model does not return feature maps.
    """
    return {name: ShapeSpec(tap.channels, tap.stride) for name, tap in _taps(model).items()}


def _taps(model: nn.Module) -> Dict[str, Tap]:
    taps = getattr(model, "taps", None)
    if not taps:
        raise OptionError(
            f"{type(model).__name__} does not return feature maps; use a backbone (features_only=True) or a model with "
            "head='fpn'"
        )
    return dict(taps)
