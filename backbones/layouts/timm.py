"""Tensor names of timm's MobileNetV1, V2 and V3.

timm numbers blocks by the lines of the papers' tables. A new line begins where the channels change, so level C4 of V3
has two lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from featuretap.backbones.layouts.naming import convolution, linear, squeeze_excite
from featuretap.backbones.mobilenet_v1 import V1
from featuretap.backbones.mobilenet_v2 import V2
from featuretap.backbones.mobilenet_v3 import LARGE, LARGE_MINIMALISTIC, SMALL, SMALL_MINIMALISTIC
from featuretap.specs import BackboneSpec, Block
from featuretap.specs.layers import SAME, SYMMETRIC, SqueezeExcite
from featuretap.specs.layout import Layout
from featuretap.specs.variants import widened

NORM_EPS = 1e-5

TENSORFLOW = "tf_"
"""Prefix of timm's models whose weights were trained in TensorFlow."""

TENSORFLOW_EPS = 1e-3

DEFAULTS = {"in_chans": 3, "output_stride": 32, "pad_type": SYMMETRIC}

NARROW_STEM = "below width 0.75, timm keeps 16 channels in the stem, whereas the paper's width multiplier scales it"

ARCHITECTURES: dict[str, tuple[BackboneSpec, float]] = {
    "mobilenetv1_100": (V1, 1.0),
    "mobilenetv1_125": (V1, 1.25),
    "mobilenetv2_035": (V2, 0.35),
    "mobilenetv2_050": (V2, 0.5),
    "mobilenetv2_075": (V2, 0.75),
    "mobilenetv2_100": (V2, 1.0),
    "mobilenetv2_140": (V2, 1.4),
    # mobilenetv3_small_050 is missing because timm keeps 16 channels in its stem, which the paper's width scales.
    "mobilenetv3_large_075": (LARGE, 0.75),
    "mobilenetv3_large_100": (LARGE, 1.0),
    "mobilenetv3_small_075": (SMALL, 0.75),
    "mobilenetv3_small_100": (SMALL, 1.0),
    "tf_mobilenetv3_large_075": (LARGE, 0.75),
    "tf_mobilenetv3_large_100": (LARGE, 1.0),
    "tf_mobilenetv3_large_minimal_100": (LARGE_MINIMALISTIC, 1.0),
    "tf_mobilenetv3_small_075": (SMALL, 0.75),
    "tf_mobilenetv3_small_100": (SMALL, 1.0),
    "tf_mobilenetv3_small_minimal_100": (SMALL_MINIMALISTIC, 1.0),
}
"""Mapping from timm's model name to table and width multiplier, for every model that both libraries have.

Models from TensorFlow have padding="same". timm's V1 and V2 take it as the argument `pad_type`.
"""


def mobilenet_v1(spec: BackboneSpec) -> Layout:
    """Return the layout of timm's `mobilenetv1_*`."""
    return _layout(spec, (V1,), {"logits": "classifier"})


def mobilenet_v2(spec: BackboneSpec) -> Layout:
    """Return the layout of timm's `mobilenetv2_*`, where the last convolution is outside the blocks."""
    return _layout(spec, (V2,), {"logits": "classifier"}, last=("conv_head", "bn2"))


def mobilenet_v3(spec: BackboneSpec) -> Layout:
    """Return the layout of timm's `mobilenetv3_*`, where the hidden layer is a 1×1 convolution."""
    return _layout(
        spec, (LARGE, SMALL), {"hidden": "conv_head", "logits": "classifier"}, pointwise="head.hidden.weight"
    )


def _layout(
    spec: BackboneSpec,
    families: tuple[BackboneSpec, ...],
    head: dict[str, str],
    last: tuple[str, str] | None = None,
    pointwise: str | None = None,
) -> Layout:
    names = linear(spec, head)
    stem, *blocks = spec.all_blocks
    names.update(convolution(stem.path, "conv_stem", "bn1"))
    if last:
        names.update(convolution(blocks.pop().path, *last))
    family = next((family for family in families if len(family.all_blocks) == len(spec.all_blocks)), spec)
    for theirs, block in _number_blocks(blocks, family):
        names.update(_block(theirs, block))
    architecture = _architecture(spec)
    narrow_stem = LARGE in families and stem.out_channels < LARGE.all_blocks[0].out_channels
    return Layout(
        names,
        TENSORFLOW_EPS if architecture.startswith(TENSORFLOW) else NORM_EPS,
        architecture,
        _arguments(spec, architecture),
        # In timm, only V3's feature extractor takes an output stride, not its classifier.
        features_only=LARGE in families and spec.output_stride != 32,
        remark=NARROW_STEM if narrow_stem else "",
        pointwise=frozenset([pointwise] if pointwise else []),
        # timm's feature extractors return maps of blocks only, not of the last convolution.
        feature_taps=(*spec.levels[:-1], f"{spec.levels[-1]}.bottleneck") if last else (),
    )


def _arguments(spec: BackboneSpec, architecture: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"in_chans": spec.in_channels, "output_stride": spec.output_stride}
    if not architecture.startswith(TENSORFLOW):
        arguments["pad_type"] = spec.padding
    return {name: value for name, value in arguments.items() if value != DEFAULTS[name]}


def _number_blocks(blocks: list[Block], family: BackboneSpec) -> Iterator[tuple[str, Block]]:
    """Number blocks by the lines of the family's table, because two lines of a narrow spec may have equal channels."""
    line = index = -1
    before = None
    for block, original in zip(blocks, family.all_blocks[1:], strict=False):
        here = (original.level, original.out_channels)
        line, index = (line, index + 1) if here == before else (line + 1, 0)
        before = here
        yield f"blocks.{line}.{index}", block


def _block(theirs: str, block: Block) -> dict[str, str]:
    convolutions = [path for path, layer in block.layer_paths() if not isinstance(layer, SqueezeExcite)]
    modules = {1: ("conv",), 2: ("conv_dw", "conv_pw"), 3: ("conv_pw", "conv_dw", "conv_pwl")}[len(convolutions)]
    names: dict[str, str] = {}
    for number, (path, module) in enumerate(zip(convolutions, modules, strict=True), start=1):
        names.update(convolution(path, f"{theirs}.{module}", f"{theirs}.bn{number}"))
    for path, layer in block.layer_paths():
        if isinstance(layer, SqueezeExcite):
            names.update(squeeze_excite(path, f"{theirs}.se.conv_reduce", f"{theirs}.se.conv_expand"))
    return names


def _architecture(spec: BackboneSpec) -> str:
    if spec.dilate_entry and spec.output_stride != 32:
        return ""
    for name, (table, width) in ARCHITECTURES.items():
        network = widened(table, width)
        takes_padding = table in (V1, V2) or name.startswith(TENSORFLOW) == (spec.padding == SAME)
        if takes_padding and (network.stages, network.classifier) == (spec.stages, spec.classifier):
            return name
    return ""
