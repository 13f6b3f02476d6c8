"""Tensor names of torchvision's MobileNetV2 and V3. torchvision has no MobileNetV1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from featuretap.backbones.layouts.naming import convolution, linear, squeeze_excite
from featuretap.backbones.mobilenet_v2 import V2
from featuretap.backbones.mobilenet_v3 import LARGE, SMALL
from featuretap.specs import BackboneSpec, Block
from featuretap.specs.layers import SYMMETRIC, Layer, SqueezeExcite, make_divisible
from featuretap.specs.layout import Layout
from featuretap.specs.variants import reduced_tail, widened

HUNDREDTHS = range(5, 401)


def mobilenet_v2(spec: BackboneSpec) -> Layout:
    """Return the layout of torchvision's `mobilenet_v2`, whose blocks end with a separate convolution and norm."""
    names: dict[str, str] = {}
    for index, block in enumerate(spec.all_blocks):
        for position, (path, _) in enumerate(block.layer_paths()):
            if not block.nested:
                names.update(convolution(path, f"features.{index}.0", f"features.{index}.1"))
            elif position == len(block.layers) - 1:
                theirs = f"features.{index}.conv"
                names.update(convolution(path, f"{theirs}.{position}", f"{theirs}.{position + 1}"))
            else:
                theirs = f"features.{index}.conv.{position}"
                names.update(convolution(path, f"{theirs}.0", f"{theirs}.1"))
    names.update(linear(spec, {"logits": "classifier.1"}))
    usual = (spec.output_stride, spec.in_channels, spec.padding) == (32, 3, SYMMETRIC)
    arguments = _v2_arguments(spec) if usual else None
    return Layout(names, 1e-5, "mobilenet_v2" if arguments is not None else "", arguments or {})


def mobilenet_v3(spec: BackboneSpec) -> Layout:
    """Return the layout of torchvision's `mobilenet_v3_large` and `mobilenet_v3_small`."""
    names: dict[str, str] = {}
    for index, block in enumerate(spec.all_blocks):
        for theirs, path, layer in _v3_layers(index, block):
            if isinstance(layer, SqueezeExcite):
                names.update(squeeze_excite(path, f"{theirs}.fc1", f"{theirs}.fc2"))
            else:
                names.update(convolution(path, f"{theirs}.0", f"{theirs}.1"))
    names.update(linear(spec, {"hidden": "classifier.0", "logits": "classifier.3"}))
    dilation = {(32, False): {}, (32, True): {}, (16, True): {"dilated": True}}.get(
        (spec.output_stride, spec.dilate_entry)
    )
    # torchvision's constructor also takes a width multiplier, but scales expanded channels differently from the paper.
    for base in (LARGE, SMALL) if (spec.in_channels, spec.padding) == (3, SYMMETRIC) else ():
        arguments: dict[str, Any]
        for arguments, network in (({}, base), ({"reduced_tail": True}, reduced_tail(base))):
            if (network.stages, network.classifier) == (spec.stages, spec.classifier) and dilation is not None:
                return Layout(names, 1e-3, base.name, arguments | dilation)
    return Layout(names, 1e-3)


def _v2_arguments(spec: BackboneSpec) -> dict[str, Any] | None:
    if spec.stages == V2.stages:
        return {}
    channels = spec.all_blocks[-2].out_channels
    for width in (hundredths / 100 for hundredths in HUNDREDTHS):
        if make_divisible(V2.all_blocks[-2].out_channels * width) == channels and (
            widened(V2, width).stages == spec.stages
        ):
            return {"width_mult": width}
    return None


def _v3_layers(index: int, block: Block) -> Iterator[tuple[str, str, Layer]]:
    for position, (path, layer) in enumerate(block.layer_paths()):
        yield (f"features.{index}.block.{position}" if block.nested else f"features.{index}"), path, layer
