"""Backbones that timm also has, and the difference between the outputs of two models."""

import torch
from torch import nn

TIMM = [
    ("mobilenet_v1", {}, "mobilenetv1_100"),
    ("mobilenet_v1_125", {}, "mobilenetv1_125"),
    ("mobilenet_v2", {}, "mobilenetv2_100"),
    ("mobilenet_v2", {"width": 0.35}, "mobilenetv2_035"),
    ("mobilenet_v2_050", {}, "mobilenetv2_050"),
    ("mobilenet_v2_075", {}, "mobilenetv2_075"),
    ("mobilenet_v2_140", {}, "mobilenetv2_140"),
    ("mobilenet_v3_large", {}, "mobilenetv3_large_100"),
    ("mobilenet_v3_large_075", {}, "mobilenetv3_large_075"),
    ("mobilenet_v3_small", {}, "mobilenetv3_small_100"),
    ("mobilenet_v3_small_075", {}, "mobilenetv3_small_075"),
    ("mobilenet_v3_large_tf", {}, "tf_mobilenetv3_large_100"),
    ("mobilenet_v3_large_075_tf", {}, "tf_mobilenetv3_large_075"),
    ("mobilenet_v3_large_minimalistic_tf", {}, "tf_mobilenetv3_large_minimal_100"),
    ("mobilenet_v3_small_tf", {}, "tf_mobilenetv3_small_100"),
    ("mobilenet_v3_small_075_tf", {}, "tf_mobilenetv3_small_075"),
    ("mobilenet_v3_small_minimalistic_tf", {}, "tf_mobilenetv3_small_minimal_100"),
]
"""Our name, our options, timm's name."""


@torch.no_grad()
def relative_difference(ours: nn.Module, theirs: nn.Module, channels: int = 3) -> float:
    images = torch.randn(2, channels, 97, 65, dtype=torch.float64)
    a, b = (model.double().eval()(images) for model in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())
