"""Tensor names of MobileNetV4 in timm."""

from __future__ import annotations

from typing import Any

from featuretap.registry.specs import BackboneSpec, Block, Conv
from featuretap.specs.layout import Layout
from featuretap.specs.variants import widened
from featuretap_mobilenet_v4.rows import FusedIB
from featuretap_mobilenet_v4.tables import CONV_MEDIUM, CONV_SMALL

__all__ = ["timm"]

NORM_EPS = 1e-5

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

ARCHITECTURES = {
    "mobilenetv4_conv_small": (CONV_SMALL, 1.0),
    "mobilenetv4_conv_small_050": (CONV_SMALL, 0.5),
    "mobilenetv4_conv_small_035": (CONV_SMALL, 0.35),
    "mobilenetv4_conv_medium": (CONV_MEDIUM, 1.0),
}
"""timm's name → table and width multiplier, for every network that both libraries have."""

UIB_MODULES = {"start_depthwise": "dw_start", "expand": "pw_exp", "depthwise": "dw_mid", "project": "pw_proj"}


def timm(spec: BackboneSpec) -> Layout:
    """Return the layout of timm's `mobilenetv4_conv_*`: a stage per resolution, and one for the last convolution."""
    stem, *blocks, last = spec.all_blocks
    names = _convolution(stem.path, "conv_stem", "bn1")
    for block in blocks:
        _, level, index = block.path.split(".")
        names |= _block(block, f"blocks.{int(level[1:]) - 2}.{index}")
    names |= _block(last, "blocks.4.0")
    names |= {"head.hidden.weight": "conv_head.weight", **_norm("head.norm", "norm_head")}
    names |= {f"head.logits.{kind}": f"classifier.{kind}" for kind in ("weight", "bias")}
    return Layout(
        names,
        NORM_EPS,
        _architecture(spec),
        _arguments(spec),
        # timm's classifier class has no output stride, its feature extractor has one.
        features_only=spec.output_stride != 32,
        pointwise=frozenset(["head.hidden.weight"]),
        head_norm_eps=NORM_EPS,
    )


def _block(block: Block, name: str) -> dict[str, str]:
    if isinstance(block.row, Conv):
        return _convolution(block.path, f"{name}.conv", f"{name}.bn1")
    names: dict[str, str] = {}
    for path, layer in block.layer_paths():
        if isinstance(block.row, FusedIB):
            conv, norm = {"expand": ("conv_exp", "bn1"), "project": ("conv_pwl", "bn2")}[layer.name]
        else:
            conv, norm = (f"{UIB_MODULES[layer.name]}.{part}" for part in ("conv", "bn"))
        names |= _convolution(path, f"{name}.{conv}", f"{name}.{norm}")
    return names


def _convolution(path: str, conv: str, norm: str) -> dict[str, str]:
    return {f"{path}.conv.weight": f"{conv}.weight", **_norm(f"{path}.norm", norm)}


def _norm(path: str, name: str) -> dict[str, str]:
    return {f"{path}.{kind}": f"{name}.{kind}" for kind in NORM}


def _architecture(spec: BackboneSpec) -> str:
    if spec.dilate_entry and spec.output_stride != 32:
        return ""
    for name, (table, width) in ARCHITECTURES.items():
        network = widened(table, width)
        if (network.stages, network.classifier) == (spec.stages, spec.classifier):
            return name
    return ""


def _arguments(spec: BackboneSpec) -> dict[str, Any]:
    defaults = {"in_chans": 3, "output_stride": 32, "pad_type": "symmetric"}
    arguments = {"in_chans": spec.in_channels, "output_stride": spec.output_stride, "pad_type": spec.padding}
    return {name: value for name, value in arguments.items() if value != defaults[name]}
