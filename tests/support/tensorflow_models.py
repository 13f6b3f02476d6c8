"""Models with TensorFlow's names and order of variables, written without the tables under test."""

from itertools import pairwise
from typing import Any

import numpy as np
import timm
import torch
from support.oracles import with_statistics
from support.tensorflow_files import Array, constant, field, graph, layer, node
from torch import nn

OURS_TO_THEIRS = [0, 2, 3, 4, 5, 1]
"""Boxes at a place: the two squares are ours 0 and 1, and TensorFlow's first and last."""

Y_BEFORE_X = [1, 0, 3, 2]

NORM_KINDS = ("gamma", "beta", "moving_mean", "moving_variance")

RATIOS = [1.0, 2.0, 0.5, 3.0, 0.3333, 1.0]


# timm's classifiers.


def timm_classifier(name: str, classes: int, **options: Any) -> nn.Module:
    """Return a timm network with TensorFlow's padding and epsilon, and with statistics."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return with_statistics(model)


def classifier_variables(model: Any, scope: str) -> dict[str, Array]:
    """Return the variables of the corresponding TF-slim network."""
    blocks = [block for stage in model.blocks for block in stage]
    if scope == "MobilenetV1":
        named = layer("Conv2d_0", model.conv_stem, model.bn1)
        for number, block in enumerate(blocks, start=1):
            named |= layer(f"Conv2d_{number}_depthwise", block.conv_dw, block.bn1)
            named |= layer(f"Conv2d_{number}_pointwise", block.conv_pw, block.bn2)
    else:
        named = layer("Conv", model.conv_stem, model.bn1)
        for number, block in enumerate(blocks):
            if hasattr(block, "conv"):
                named |= layer("Conv_1", block.conv, block.bn1)
                continue
            inner = "expanded_conv" if number == 0 else f"expanded_conv_{number}"
            convolutions = [getattr(block, kind, None) for kind in ("conv_pw", "conv_dw", "conv_pwl")]
            if convolutions[2] is None:
                named |= layer(f"{inner}/depthwise", block.conv_dw, block.bn1)
                named |= layer(f"{inner}/project", block.conv_pw, block.bn2)
            else:
                norms = (block.bn1, block.bn2, block.bn3)
                for kind, conv, norm in zip(("expand", "depthwise", "project"), convolutions, norms, strict=True):
                    named |= layer(f"{inner}/{kind}", conv, norm)
            if isinstance(getattr(block, "se", None), nn.Module) and hasattr(block.se, "conv_reduce"):
                named |= layer(f"{inner}/squeeze_excite/Conv", block.se.conv_reduce)
                named |= layer(f"{inner}/squeeze_excite/Conv_1", block.se.conv_expand)
        named |= (
            layer("Conv_1", model.conv_head, model.bn2) if hasattr(model, "bn2") else layer("Conv_2", model.conv_head)
        )
    weight, bias = (value.detach().numpy() for value in (model.classifier.weight, model.classifier.bias))
    named |= {"Logits/Conv2d_1c_1x1/weights": weight.T[None, None], "Logits/Conv2d_1c_1x1/biases": bias}
    return {f"{scope}/{name}": array for name, array in named.items()}


# featuretap's detectors.


def detector_variables(model: Any, scope: str, last: str) -> dict[str, Array]:
    """Return the variables of a detector of the Object Detection API.

    Args:
        model: a featuretap detector with SSD or SSDLite.
        scope: the scope of the backbone.
        last: the name of the backbone's last layer within the names of the extra layers.
    """
    named = {f"FeatureExtractor/{name}": array for name, array in _backbone_variables(model.backbone, scope).items()}
    for index, extra in enumerate(model.head.neck.extra):
        *_, wide = extra
        channels = wide[-3].out_channels
        theirs = f"FeatureExtractor/{scope}/{last}"
        names = [
            f"{theirs}_1_Conv2d_{index + 2}_1x1_{channels // 2}",
            f"{theirs}_2_Conv2d_{index + 2}_3x3_s2_{channels}",
        ]
        names = [names[0], f"{names[1]}_depthwise", names[1]] if len(extra) == 3 else names
        for name, inner in zip(names, extra, strict=True):
            named |= layer(name, inner[-3], inner[-2])
    heads = {"ClassPredictor": model.head.predictor.classification_head}
    heads["BoxEncodingPredictor"] = model.head.predictor.regression_head
    for kind, head in heads.items():
        for level, predictor in enumerate(head.module_list):
            name = f"BoxPredictor_{level}/{kind}"
            conv = predictor
            if isinstance(predictor, nn.Sequential):
                named |= layer(f"{name}_depthwise", predictor[0][0], predictor[0][1])
                conv = predictor[1]
            rows = np.arange(conv.out_channels).reshape(-1, head.num_columns)
            rows = rows[OURS_TO_THEIRS] if len(rows) == 6 else rows
            rows = rows[:, Y_BEFORE_X] if kind == "BoxEncodingPredictor" else rows
            named |= {key: array[..., rows.ravel()] for key, array in layer(name, conv).items()}
    return named


def _backbone_variables(backbone: Any, scope: str) -> dict[str, Array]:
    blocks = [block for stage in backbone.stages.children() for block in stage.children()]
    named: dict[str, Array] = {}
    for number, block in enumerate(blocks):
        inner = f"Conv2d_{number}" if scope == "MobilenetV1" else f"expanded_conv_{number - 1}".removesuffix("_0")
        if hasattr(block, "conv"):
            inner = inner if scope == "MobilenetV1" else "Conv" if number == 0 else "Conv_1"
            named |= layer(f"{scope}/{inner}", block.conv, block.norm)
            continue
        for kind, part in block.named_children():
            theirs = f"{scope}/{inner}_{kind}" if scope == "MobilenetV1" else f"{scope}/{inner}/{kind}"
            if kind == "squeeze_excite":
                named |= layer(f"{theirs}/Conv", part.reduce) | layer(f"{theirs}/Conv_1", part.expand)
            else:
                named |= layer(theirs, part.conv, part.norm)
    return named


def detector_graph(
    variables: dict[str, Array],
    *more: bytes,
    size: tuple[int, int] = (300, 300),
    scores: str = "Sigmoid",
    overlap: float = 0.6,
    least: float = 1e-8,
    most: int = 100,
    coder: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0),
    ratios: list[float] | None = None,
    half_pixel_centers: bool = False,
) -> bytes:
    """Return a frozen graph of the Object Detection API, with the parts that state a detector's settings."""
    nodes = [
        constant("Preprocessor/map/while/ResizeImage/stack", np.array(size, "i4")),
        node(
            "Preprocessor/map/while/ResizeBilinear",
            "ResizeBilinear",
            half_pixel_centers=field(5, int(half_pixel_centers)),
        ),
        node("Postprocessor/convert_scores", scores),
        constant("Postprocessor/NMS/map/while/non_max_suppression/iou_threshold", np.array(overlap, "f4")),
        constant("Postprocessor/NMS/map/while/non_max_suppression/score_threshold", np.array(least, "f4")),
        constant("Postprocessor/NMS/map/while/PadOrClipBoxList/sub/y", np.array(most, "i4")),
    ]
    for place, divisor in zip(("", "_1", "_2", "_3"), coder, strict=True):
        nodes.append(constant(f"Postprocessor/Decode/truediv{place}/y", np.array(divisor, "f4")))
    scales = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0]
    lowest = variables["BoxPredictor_0/BoxEncodingPredictor/biases"].size == 12
    for level, scale in enumerate(scales[:-1]):
        here, shapes = [scale] * 5 + [(scale * scales[level + 1]) ** 0.5], ratios or RATIOS
        if level == 0 and lowest:
            here, shapes = [0.1, 0.2, 0.2], RATIOS[:3]
        name = "MultipleGridAnchorGenerator"
        nodes.append(constant(f"{name}/Sqrt{'_' * (level > 0)}{level or ''}/x", np.array(shapes, "f4")))
        nodes.append(constant(f"{name}/mul_{15 + 3 * level}/x", np.array(here, "f4")))
    return graph(variables, *nodes, *more)


def tiny_variables() -> dict[str, Array]:
    """Return the variables of TF-slim's MobileNetV1 at width 0.05, without logits."""
    stem, *others = (8, 8, 8, 8, 16, 16, 24, 24, 24, 24, 24, 24, 48, 48)
    variables: dict[str, Array] = {}

    def add(scope: str, weight: str, *shape: int) -> None:
        channels = shape[2] if weight == "depthwise_weights" else shape[3]
        variables[f"MobilenetV1/{scope}/{weight}"] = np.ones(shape, "f4")
        for kind in NORM_KINDS:
            variables[f"MobilenetV1/{scope}/BatchNorm/{kind}"] = np.ones(channels, "f4")

    add("Conv2d_0", "weights", 3, 3, 3, stem)
    for number, (before, after) in enumerate(pairwise((stem, *others)), start=1):
        add(f"Conv2d_{number}_depthwise", "depthwise_weights", 3, 3, before, 1)
        add(f"Conv2d_{number}_pointwise", "weights", 1, 1, before, after)
    return variables
