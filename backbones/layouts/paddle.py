"""Tensor names of PaddleClas's MobileNetV3.

They are defined by `ppcls/arch/backbone/legendary_models/mobilenet_v3.py`, and used in the files that PaddleClas
publishes. Paddle's linear weights are (in, out), and its batch norms have no `num_batches_tracked`.
"""

from __future__ import annotations

from featuretap.backbones.layouts.naming import linear, squeeze_excite
from featuretap.backbones.mobilenet_v3_paddle import LARGE_PADDLE, SMALL_PADDLE
from featuretap.specs import BackboneSpec
from featuretap.specs.layers import SYMMETRIC, SqueezeExcite
from featuretap.specs.layout import Layout
from featuretap.specs.variants import widened

NORM = {"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"}

MODULES = {"expand": "expand_conv", "depthwise": "bottleneck_conv", "project": "linear_conv"}
"""Mapping from featuretap's layer of a block to PaddleClas's."""

ARCHITECTURES = {LARGE_PADDLE.name: "MobileNetV3_large", SMALL_PADDLE.name: "MobileNetV3_small"}

SCALES = {0.35: "x0_35", 0.5: "x0_5", 0.75: "x0_75", 1.0: "x1_0", 1.25: "x1_25"}
"""Mapping from width multiplier to the suffix of PaddleClas's model name, for every model it provides."""


def mobilenet_v3(spec: BackboneSpec) -> Layout:
    """Return the layout of PaddleClas's `MobileNetV3_*`."""
    stem, *blocks, last = spec.all_blocks
    names = linear(spec, {"hidden": "last_conv", "logits": "fc"})
    names |= _convolution(stem.path, "conv") | _convolution(last.path, "last_second_conv")
    for index, block in enumerate(blocks):
        for path, layer in block.layer_paths():
            theirs = f"blocks.{index}"
            if isinstance(layer, SqueezeExcite):
                names |= squeeze_excite(path, f"{theirs}.mid_se.conv1", f"{theirs}.mid_se.conv2")
            else:
                names |= _convolution(path, f"{theirs}.{MODULES[layer.name]}")
    return Layout(
        names,
        1e-5,
        _architecture(spec),
        pointwise=frozenset(["head.hidden.weight"]),
        transposed=frozenset(["head.logits.weight"]),
    )


def _convolution(path: str, theirs: str) -> dict[str, str]:
    norm = {f"{path}.norm.{kind}": f"{theirs}.bn.{name}" for kind, name in NORM.items()}
    return {f"{path}.conv.weight": f"{theirs}.conv.weight", **norm}


def _architecture(spec: BackboneSpec) -> str:
    if (spec.in_channels, spec.output_stride, spec.padding) != (3, 32, SYMMETRIC):
        return ""
    for family in (LARGE_PADDLE, SMALL_PADDLE):
        for scale, ending in SCALES.items():
            network = widened(family, scale)
            if (network.stages, network.classifier) == (spec.stages, spec.classifier):
                return f"{ARCHITECTURES[family.name]}_{ending}"
    return ""
