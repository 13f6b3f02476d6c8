"""A backbone with a head on it."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["HeadedModel"]


class HeadedModel(nn.Module):
    """A backbone and the head that reads its maps."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return what the head makes of images (N, in_channels, H, W)."""
        return self.head(self.backbone(images))
