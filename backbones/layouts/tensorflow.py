"""Tensor names of TF-slim's MobileNetV1, V2 and V3 (tensorflow/models, `research/slim/nets`).

Kernels are in PyTorch's order, as returned by `featuretap.weights.tensorflow_variables`. featuretap reads files in this
layout, but does not write them.
"""

from __future__ import annotations

from featuretap.backbones.layouts.naming import WEIGHT_AND_BIAS
from featuretap.specs import BackboneSpec, Block
from featuretap.specs.layers import Convolution, Layer, SqueezeExcite
from featuretap.specs.layout import Layout

NORM_EPS = 1e-3

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
KINDS = dict(zip(WEIGHT_AND_BIAS, ("weights", "biases"), strict=True))

LOGITS = "Logits/Conv2d_1c_1x1"
HIDDEN = "Conv_2"


def mobilenet_v1(spec: BackboneSpec) -> Layout:
    """Return the layout of TF-slim's `mobilenet_v1`, where the two layers of a block are siblings."""
    names: dict[str, str] = {}
    for number, block in enumerate(spec.all_blocks):
        for path, layer in block.layer_paths():
            theirs = f"Conv2d_{number}_{layer.name}" if block.nested else f"Conv2d_{number}"
            names |= convolution(path, f"MobilenetV1/{theirs}", depthwise=_is_depthwise(layer))
    return _layout(spec, "MobilenetV1", names)


def mobilenet_v2(spec: BackboneSpec) -> Layout:
    """Return the layout of TF-slim's `mobilenet_v2`."""
    return _layout(spec, "MobilenetV2", _blocks(spec, "MobilenetV2"))


def mobilenet_v3(spec: BackboneSpec) -> Layout:
    """Return the layout of TF-slim's `mobilenet_v3`, where the hidden layer is a 1×1 convolution."""
    return _layout(spec, "MobilenetV3", _blocks(spec, "MobilenetV3"))


def convolution(path: str, theirs: str, *, depthwise: bool = False) -> dict[str, str]:
    """Return the names of a convolution and its norm.

    Args:
        path: featuretap's path of the layer.
        theirs: TensorFlow's scope.
        depthwise: whether the convolution is depthwise.

    Returns:
        A mapping from featuretap's tensor names to TensorFlow's.
    """
    weight = "depthwise_weights" if depthwise else "weights"
    norm = {f"{path}.norm.{ours}": f"{theirs}/BatchNorm/{name}" for ours, name in NORM.items()}
    return {f"{path}.conv.weight": f"{theirs}/{weight}", **norm}


def with_bias(path: str, theirs: str) -> dict[str, str]:
    """Return the names of a layer with weight and bias: `path` in featuretap, scope `theirs` in TensorFlow."""
    return {f"{path}.{ours}": f"{theirs}/{name}" for ours, name in KINDS.items()}


def _layout(spec: BackboneSpec, scope: str, names: dict[str, str]) -> Layout:
    names |= with_bias("head.logits", f"{scope}/{LOGITS}")
    if spec.classifier.hidden:
        names |= with_bias("head.hidden", f"{scope}/{HIDDEN}")
    pointwise = frozenset({"head.logits.weight", "head.hidden.weight"} & names.keys())
    return Layout(names, NORM_EPS, writable=False, pointwise=pointwise)


def _blocks(spec: BackboneSpec, scope: str) -> dict[str, str]:
    """Return the names of the blocks of V2 and V3, numbered from 0 after the stem. The first scope has no number."""
    first, *blocks, last = spec.all_blocks
    names = _names_of(first, f"{scope}/Conv") | _names_of(last, f"{scope}/Conv_1")
    for number, block in enumerate(blocks):
        names |= _names_of(block, f"{scope}/expanded_conv_{number}".removesuffix("_0"))
    return names


def _names_of(block: Block, scope: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for path, layer in block.layer_paths():
        theirs = f"{scope}/{layer.name}" if block.nested else scope
        if isinstance(layer, SqueezeExcite):
            names |= with_bias(f"{path}.reduce", f"{theirs}/Conv") | with_bias(f"{path}.expand", f"{theirs}/Conv_1")
        else:
            names |= convolution(path, theirs, depthwise=_is_depthwise(layer))
    return names


def _is_depthwise(layer: Layer) -> bool:
    return isinstance(layer, Convolution) and layer.groups > 1
