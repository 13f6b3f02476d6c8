"""Tensor names of EfficientNet-Lite in other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from featuretap.registry.specs import BackboneSpec, Block
from featuretap.specs.layout import Layout
from featuretap_efficientnet_lite.tables import LITE0, LITE1, LITE2, LITE3, LITE4

__all__ = ["efficientnet_lite_pytorch", "timm"]

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

TABLES = (LITE0, LITE1, LITE2, LITE3, LITE4)


def timm(spec: BackboneSpec) -> Layout:
    """Return the layout of timm's `tf_efficientnet_lite*`, or with symmetric padding `efficientnet_lite*`."""
    stem, *blocks, last = spec.all_blocks
    names = _convolution(stem.path, "conv_stem", "bn1") | _convolution(last.path, "conv_head", "bn2")
    for line, block in _number_lines(blocks):
        modules = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if len(block.layers) == 2:
            modules["project"] = "conv_pw"
        for number, (path, layer) in enumerate(block.layer_paths(), start=1):
            names |= _convolution(path, f"{line}.{modules[layer.name]}", f"{line}.bn{number}")
    names |= _classifier("classifier")
    prefix, eps = ("tf_", 1e-3) if spec.padding == "same" else ("", 1e-5)
    number = _number(spec)
    return Layout(names, eps, f"{prefix}efficientnet_lite{number}" if number else "", _timm_arguments(spec))


def efficientnet_lite_pytorch(spec: BackboneSpec) -> Layout:
    """Return the layout of efficientnet-lite-pytorch, which numbers all blocks consecutively."""
    stem, *blocks, last = spec.all_blocks
    names = _convolution(stem.path, "_conv_stem", "_bn0") | _convolution(last.path, "_conv_head", "_bn1")
    modules = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    for index, block in enumerate(blocks):
        for path, layer in block.layer_paths():
            names |= _convolution(
                path, *(f"_blocks.{index}.{part}" for part in modules.get(layer.name, ("_project_conv", "_bn2")))
            )
    names |= _classifier("_fc")
    is_available = spec.in_channels == 3 and spec.output_stride == 32 and spec.padding == "same"
    number = _number(spec)
    return Layout(names, 1e-3, f"efficientnet-lite{number}" if number and is_available else "")


def _number_lines(blocks: list[Block]) -> Iterator[tuple[str, Block]]:
    """Number blocks by the lines of the paper's table; level C4 has two lines of equal length."""
    by_level: dict[str, list[Block]] = {}
    for block in blocks:
        by_level.setdefault(block.level, []).append(block)
    half = len(by_level["C4"]) // 2
    *c5, end = by_level["C5"]
    lines = [by_level["C1"], by_level["C2"], by_level["C3"], by_level["C4"][:half], by_level["C4"][half:], c5, [end]]
    for number, line in enumerate(lines):
        for index, block in enumerate(line):
            yield f"blocks.{number}.{index}", block


def _convolution(path: str, conv: str, norm: str) -> dict[str, str]:
    return {f"{path}.conv.weight": f"{conv}.weight", **{f"{path}.norm.{kind}": f"{norm}.{kind}" for kind in NORM}}


def _classifier(name: str) -> dict[str, str]:
    return {f"head.logits.{kind}": f"{name}.{kind}" for kind in ("weight", "bias")}


def _number(spec: BackboneSpec) -> str:
    """Return "0" to "4" for networks that exist in both libraries, otherwise ""."""
    if spec.dilate_entry and spec.output_stride != 32:
        return ""
    return next((table.name[-1] for table in TABLES if table.stages == spec.stages), "")


def _timm_arguments(spec: BackboneSpec) -> dict[str, Any]:
    defaults = {"in_chans": 3, "output_stride": 32}
    arguments = {"in_chans": spec.in_channels, "output_stride": spec.output_stride}
    return {name: value for name, value in arguments.items() if value != defaults[name]}
