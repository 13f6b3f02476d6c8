"""Our backbones and pyramids as other libraries' code wants them."""

# torch.jit.script reads annotations as objects, not as strings.
# ruff: noqa: UP006, UP035
from dataclasses import dataclass
from typing import Dict, List

from torch import Tensor, nn

from featuretap.heads.modules.models import DetectionModel, PyramidModel
from featuretap.specs import Tap
from featuretap.support.errors import OptionError

__all__ = ["ShapeSpec", "TorchvisionBackbone", "as_torchvision", "output_shape"]

EXTRA = {0: (), 1: ("pool",), 2: ("p6", "p7")}
"""What torchvision calls levels that a pyramid adds, by their number."""


@dataclass(frozen=True)
class ShapeSpec:
    """A map (N, channels, H', W') as Detectron2 describes it, with the fields of its class of this name.

    Args:
        channels: of the map.
        stride: height and width of the image, divided by the map's.
        height: not known beforehand.
        width: not known beforehand.
    """

    channels: int
    stride: int
    height: None = None
    width: None = None


class TorchvisionBackbone(nn.Module):
    """Images (N, in_channels, H, W) → maps under the keys "0", "1", … and, for added levels, torchvision's names.

    Args:
        body: images → dict of maps (N, C, H', W').
        keys: what the maps are called, in their order.
        out_channels: channels of every map, which is an attribute too; None where they differ, for SSD, which finds out
            itself. Detectors that need one number of channels refuse a backbone without the attribute.
    """

    def __init__(self, body: nn.Module, keys: List[str], out_channels: "int | None") -> None:
        super().__init__()
        self.body = body
        self.keys = keys
        if out_channels is not None:
            self.out_channels = out_channels

    def forward(self, images: Tensor) -> Dict[str, Tensor]:
        """Return the maps of `images`, the finest first."""
        maps: Dict[str, Tensor] = {}
        for key, feature in zip(self.keys, self.body(images).values()):  # noqa: B905 - torch.jit.script knows no strict
            maps[key] = feature  # noqa: PERF403
        return maps


def as_torchvision(model: nn.Module) -> nn.Module:
    """Return a model in the form that torchvision's detectors take and have.

    A bare backbone or one with a pyramid becomes what they take as `backbone`: `out_channels` is a number, and keys are
    "0", "1", … Maps of different numbers of channels suit torchvision's `SSD`, and have no `out_channels`; its other
    detectors refuse them. A detection model becomes torchvision's own detector, around the same modules.

    Args:
        model: a model that `registry.build` or `registry.load` returned: a backbone, with a pyramid, or a detector.

    Raises:
        OptionError: the model returns no maps.
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
    """Return name → channels and stride of the maps of `model`, as Detectron2's backbones do.

    Args:
        model: a bare backbone, or one with a pyramid.

    Raises:
        OptionError: the model returns no maps.
    """
    return {name: ShapeSpec(tap.channels, tap.stride) for name, tap in _taps(model).items()}


def _taps(model: nn.Module) -> Dict[str, Tap]:
    taps = getattr(model, "taps", None)
    if not taps:
        raise OptionError(
            f"{type(model).__name__} returns no maps; give a backbone (features_only=True) or a model with head='fpn'"
        )
    return dict(taps)
