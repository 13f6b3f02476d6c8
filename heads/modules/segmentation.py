"""A backbone with a segmentation head, called as torchvision's segmenters are."""

# torch.jit.script reads annotations as objects, not as strings.
# ruff: noqa: UP006, UP035
from typing import Dict

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from featuretap.heads.modules.headed import HeadedModel

__all__ = ["SegmentationModel"]


class SegmentationModel(HeadedModel):
    """Images (N, in_channels, H, W) → {"out": logits (N, num_classes, H, W)}, and "aux" where the head has it."""

    def forward(self, images: Tensor) -> Dict[str, Tensor]:  # type: ignore[override]
        """Return the logits, enlarged to the size of the images."""
        small: Dict[str, Tensor] = self.head(self.backbone(images))
        logits: Dict[str, Tensor] = {}
        for name, values in small.items():
            logits[name] = F.interpolate(values, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return logits
