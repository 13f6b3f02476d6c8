"""DeepLabV3 as a module: torchvision's head on our taps."""

# torch.jit.script reads annotations as objects, not as strings.
# ruff: noqa: UP006, UP035
from collections.abc import Sequence
from typing import Dict

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from featuretap.specs import BackboneSpec

__all__ = ["DeepLabV3Head", "deeplab_v3"]


class DeepLabV3Head(nn.Module):
    """One map → {"out": logits (N, num_classes, H', W')}, of the map's size."""

    def __init__(self, tap: str, classifier: nn.Module) -> None:
        super().__init__()
        self.tap = tap
        self.classifier = classifier

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return the logits."""
        return {"out": self.classifier(maps[self.tap])}


class AuxiliaryDeepLabV3Head(DeepLabV3Head):
    """Two maps → {"out": …, "aux": …}, each of its map's size; the second is to learn from (as FCN, 1411.4038)."""

    def __init__(self, tap: str, classifier: nn.Module, auxiliary_tap: str, auxiliary: nn.Module) -> None:
        super().__init__(tap, classifier)
        self.auxiliary_tap = auxiliary_tap
        self.auxiliary = auxiliary

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return both logits."""
        return {"out": self.classifier(maps[self.tap]), "aux": self.auxiliary(maps[self.auxiliary_tap])}


def deeplab_v3(
    backbone: BackboneSpec, *, num_classes: int, auxiliary: bool, atrous_rates: Sequence[int]
) -> DeepLabV3Head:
    """Return the head for the first tap of a backbone, and the second where there is an auxiliary output."""
    (name, tap), *others = backbone.taps.items()
    classifier = DeepLabHead(tap.channels, num_classes, atrous_rates)
    if not auxiliary:
        return DeepLabV3Head(name, classifier)
    ((auxiliary_name, auxiliary_tap),) = others
    return AuxiliaryDeepLabV3Head(name, classifier, auxiliary_name, FCNHead(auxiliary_tap.channels, num_classes))
