"""Tensor names of the SSD detectors in TensorFlow's Object Detection API, on TF-slim's MobileNets.

The names of extra layers contain their channels, so they depend on the width (tensorflow/models,
`research/object_detection/models/feature_map_generators.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from featuretap.backbones.layouts.naming import NORM
from featuretap.backbones.layouts.tensorflow import NORM_EPS, convolution, with_bias
from featuretap.heads.detection import extra_channels
from featuretap.specs import ModelSpec
from featuretap.specs.layout import Layout
from featuretap.specs.preprocessing import Preprocessing

EXTRACTOR = "FeatureExtractor"

PREDICTORS = {"classification_head": "ClassPredictor", "regression_head": "BoxEncodingPredictor"}

SCALED = Preprocessing(None, None, (0.5,) * 3, (0.5,) * 3, inside=True)
"""The model itself scales images to values from -1 to 1."""


def ssdlite(model: ModelSpec, backbone: Layout) -> Layout:
    """Return the layout of SSDLite, where strided layers and predictors are a depthwise and a 1×1 convolution."""
    names: dict[str, str] = {}
    for path, narrow, wide in _extra_layers(model, backbone):
        names |= _layer(f"{path}.0", narrow)
        names |= _layer(f"{path}.1", f"{wide}_depthwise", depthwise=True) | _layer(f"{path}.2", wide)
    for path, theirs in _predictors(model):
        names |= _layer(f"{path}.0", f"{theirs}_depthwise", depthwise=True) | with_bias(f"{path}.1", theirs)
    return _with_backbone(backbone, names)


def ssd(model: ModelSpec, backbone: Layout) -> Layout:
    """Return the layout of SSD."""
    names: dict[str, str] = {}
    for path, narrow, wide in _extra_layers(model, backbone):
        names |= _layer(f"{path}.0", narrow) | _layer(f"{path}.1", wide)
    for path, theirs in _predictors(model):
        names |= with_bias(path, theirs)
    return _with_backbone(backbone, names)


def _extra_layers(model: ModelSpec, backbone: Layout) -> Iterator[tuple[str, str, str]]:
    """Yield, for each extra layer, featuretap's path and TensorFlow's scopes of the 1×1 and 3×3 convolutions."""
    scope = next(iter(backbone.names.values())).partition("/")[0]
    blocks = len(model.backbone.all_blocks)
    last = f"Conv2d_{blocks - 1}_pointwise" if scope == "MobilenetV1" else f"layer_{blocks}"
    for index, channels in enumerate(extra_channels(model.backbone.width)):
        level = len(model.backbone.taps) + index
        theirs = f"{EXTRACTOR}/{scope}/{last}"
        narrow, wide = f"{theirs}_1_Conv2d_{level}_1x1_{channels // 2}", f"{theirs}_2_Conv2d_{level}_3x3_s2_{channels}"
        yield f"head.neck.extra.{index}", narrow, wide


def _predictors(model: ModelSpec) -> Iterator[tuple[str, str]]:
    for level in range(len(model.backbone.taps) + len(extra_channels(model.backbone.width))):
        for ours, theirs in PREDICTORS.items():
            yield f"head.predictor.{ours}.module_list.{level}", f"BoxPredictor_{level}/{theirs}"


def _layer(path: str, theirs: str, *, depthwise: bool = False) -> dict[str, str]:
    """Return the names of a convolution and its norm, which are the modules 0 and 1 at featuretap's path."""
    ours = {"conv.weight": "0.weight", **{f"norm.{kind}": f"1.{kind}" for kind in NORM}}
    names = convolution("", theirs, depthwise=depthwise)
    return {f"{path}.{ours[name.removeprefix('.')]}": scope for name, scope in names.items()}


def _with_backbone(backbone: Layout, head: dict[str, str]) -> Layout:
    body = {ours: f"{EXTRACTOR}/{theirs}" for ours, theirs in backbone.names.items() if not ours.startswith("head.")}
    return Layout(body | head, NORM_EPS, writable=False, head_norm_eps=NORM_EPS, preprocessing=SCALED)
