"""Tensor names of torchvision's detectors and segmenters on MobileNetV3.

A model's names are those of the classifier on the same backbone with other prefixes, and those of the head. The names
are defined for every backbone in torchvision, so that files of models built from its parts can be read. `architecture`
is set only if a function of torchvision builds the same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from featuretap.heads.detection import image_size
from featuretap.specs import ModelSpec
from featuretap.specs.layout import Layout
from featuretap.specs.preprocessing import Preprocessing

LARGE = "mobilenet_v3_large"
DILATED = {"dilated": True}

Prefixes = Mapping[str, str]
"""Mapping from prefix of a name to its replacement. The first matching prefix is replaced."""

RAW = Preprocessing().for_images("raw")


def ssdlite(model: ModelSpec, backbone: Layout) -> Layout:
    """Return the layout of `ssdlite320_mobilenet_v3_large`, which splits the backbone after C4's expansion."""
    entering = next(i for i, block in enumerate(model.backbone.all_blocks) if block.path == "stages.C5.0")
    first, second = "backbone.features.0.", "backbone.features.1."
    body = {f"features.{entering}.block.0.": f"{first}{entering}.", f"features.{entering}.block.": f"{second}0."}
    for index in range(len(model.backbone.all_blocks)):
        theirs = f"{first}{index}." if index < entering else f"{second}{index - entering}."
        body.setdefault(f"features.{index}.", theirs)
    same = (
        tuple(model.backbone.taps) == ("C4.expansion", "C5")
        and image_size(model.head_options["size"]) == (320, 320)
        and not model.head_options["reduce_lowest_anchors"]
        and _is(backbone, {"reduced_tail": True})
    )
    head = {"neck.extra.": "backbone.extra.", "predictor.": "head."}
    name = "ssdlite320_mobilenet_v3_large" if same else ""
    layout = _layout(model, backbone, body, head, (1e-3, 1e-3), name)
    return replace(layout, preprocessing=replace(RAW, mean=(0.5,) * 3, std=(0.5,) * 3))


def faster_rcnn(model: ModelSpec, backbone: Layout) -> Layout:
    """Return the layout of `fasterrcnn_mobilenet_v3_large_fpn`."""
    usual = {"out_channels": 256, "extra_levels": "pool", "fpn_norm": None, "depthwise": False}
    same = (
        tuple(model.backbone.taps) == ("C5.first", "C5")
        and _has(model, {**usual, "anchor_sizes": None, "aspect_ratios": None})
        and _is(backbone, {})
    )
    head = {"neck.fpn.": "backbone.fpn.", "": ""}
    name = "fasterrcnn_mobilenet_v3_large_fpn" if same else ""
    layout = _layout(model, backbone, {"features.": "backbone.body."}, head, (1e-5, 1e-5), name)
    return replace(layout, preprocessing=RAW)


def lraspp(model: ModelSpec, backbone: Layout) -> Layout:
    """Return the layout of `lraspp_mobilenet_v3_large`."""
    usual = {"inter_channels": 128, "pooling": "global", "gate": "sigmoid", "gate_bias": False}
    same = tuple(model.backbone.taps) == ("C3.first", "C5") and _has(model, usual) and _is(backbone, DILATED)
    head = {"features.": "classifier.cbr.", "gate.0.": "classifier.scale.1.", "": "classifier."}
    name = "lraspp_mobilenet_v3_large" if same else ""
    return _layout(model, backbone, {"features.": "backbone."}, head, (1e-3, 1e-5), name)


def deeplab_v3(model: ModelSpec, backbone: Layout) -> Layout:
    """Return the layout of `deeplabv3_mobilenet_v3_large`, with or without its auxiliary output."""
    auxiliary = model.head_options["auxiliary"]
    same = (
        tuple(model.backbone.taps) == (("C5", "C3.first") if auxiliary else ("C5",))
        and tuple(model.head_options["atrous_rates"]) == (12, 24, 36)
        and _is(backbone, DILATED)
    )
    name = "deeplabv3_mobilenet_v3_large" if same else ""
    arguments = {"aux_loss": True} if auxiliary else {}
    head = {"auxiliary.": "aux_classifier.", "": ""}
    return _layout(model, backbone, {"features.": "backbone."}, head, (1e-3, 1e-5), name, arguments)


def _layout(
    model: ModelSpec,
    backbone: Layout,
    body: Prefixes,
    head: Prefixes,
    eps: Sequence[float],
    architecture: str,
    arguments: Mapping[str, Any] | None = None,
) -> Layout:
    names = {ours: _rename(theirs, body) for ours, theirs in backbone.names.items() if not ours.startswith("head.")}
    names |= {f"head.{name}": _rename(name, head) for name in model.head_tensors}
    arguments = {"num_classes": model.num_classes, **(arguments or {})}
    return Layout(names, eps[0], architecture, arguments, head_norm_eps=eps[1])


def _rename(name: str, prefixes: Prefixes) -> str:
    for prefix, other in prefixes.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return name


def _has(model: ModelSpec, options: Mapping[str, Any]) -> bool:
    return all(model.head_options[name] == value for name, value in options.items())


def _is(backbone: Layout, arguments: Mapping[str, Any]) -> bool:
    return (backbone.architecture, dict(backbone.arguments)) == (LARGE, dict(arguments))
