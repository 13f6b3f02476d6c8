"""Helpers for backbones in the namespaces `timm/` and `torchvision/`: an odd image size, and their maps."""

import torch
from torch import Tensor, nn

ODD = (95, 130)


@torch.no_grad()
def maps_of(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = backbone(images)
    return maps
