"""SSD and SSDLite as ONNX nodes, from images of any size to boxes in pixels of these images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuretap.backbones.nodes import backbone_nodes
from featuretap.heads.detection import (
    LARGEST,
    SMALLEST,
    SMALLEST_ANCHOR,
    SSD_RATIOS,
    SSDLITE_EXTRA,
    image_size,
)
from featuretap.specs import BackboneSpec
from featuretap.specs.graph import Graph
from featuretap.specs.layers import SAME

PREDICTOR = "head.predictor"

PREPARED = "prepared"
"""Key in `Graph.maps` of the preprocessed images, which several detectors share."""

Padding = int | None
"""Padding of a strided convolution: pixels on each side, or None for TensorFlow's rule "SAME"."""

FLOAT, INT64 = 1, 7
"""`onnx.TensorProto.FLOAT` and `onnx.TensorProto.INT64`."""

BOX_WEIGHTS = 10.0, 5.0
"""Divisors of the predicted center and size of a box (torchvision's `SSD.box_coder`)."""

MAXIMUM_LOG_SCALE = log(1000 / 16)
"""Maximum predicted logarithm of a box's size relative to its anchor's (torchvision's `BoxCoder`)."""


def ssdlite_nodes(backbone: BackboneSpec, *, graph: Graph, **options: Any) -> dict[str, str]:
    """Append the nodes of an SSDLite detector on images (N, C, H, W) with values from 0 to 1.

    Args:
        backbone: the resolved spec of the backbone.
        graph: the graph to append to.
        **options: options of the head, including `num_classes`.

    Returns:
        "boxes" (N, D, 4) as x1, y1, x2, y2 in pixels of the images, "scores" (N, D) in descending order, "labels" (N,
        D) and "num_detections" (N,). Entries after an image's number of detections are zeros.
    """
    return _ssd_nodes(backbone, graph, _separable_layer, _separable_predictor, **options)


def ssd_nodes(backbone: BackboneSpec, *, graph: Graph, **options: Any) -> dict[str, str]:
    """Append the nodes of an SSD detector on images (N, C, H, W) with values from 0 to 1.

    Args:
        backbone: the resolved spec of the backbone.
        graph: the graph to append to.
        **options: options of the head, including `num_classes`.

    Returns:
        The outputs of `ssdlite_nodes`.
    """
    return _ssd_nodes(backbone, graph, _full_layer, _full_predictor, **options)


def _ssd_nodes(
    backbone: BackboneSpec,
    graph: Graph,
    extra_layer: Callable[[Graph, str, str, Padding], str],
    predictor: Callable[[Graph, str, str], str],
    *,
    num_classes: int,
    size: int | Sequence[int],
    reduce_lowest_anchors: bool,
    clip_anchors: bool,
    resizing: str,
    scores: str,
    nms_thresh: float,
    score_thresh: float,
    detections_per_img: int,
    topk_candidates: int,
    **others: Any,
) -> dict[str, str]:
    """Append the nodes of a detector with these extra layers and predictors, and return its outputs.

    `others` are options that only affect training or the tensors.
    """
    height, width = image_size(size)
    original = graph.images
    if (PREPARED, original) not in graph.maps:
        mean, std = (
            graph.constant(np.reshape(values, (-1, 1, 1)))
            for values in (graph.preprocessing.mean, graph.preprocessing.std)
        )
        normalized = graph.node("Div", graph.node("Sub", original, mean), std)
        resized = graph.resize(normalized, graph.constant([height, width]), coordinates=resizing)
        graph.maps[PREPARED, original] = resized
    # The backbone is shared, so other heads must read the same preprocessed images.
    graph.images = graph.maps[PREPARED, original]
    maps = list(backbone_nodes(graph, backbone, graph.images).values())
    sizes = [shape[1:] for shape in backbone.tap_shapes(height, width).values()]
    padding = None if backbone.padding == SAME else 1
    for index in range(len(SSDLITE_EXTRA)):
        maps.append(extra_layer(graph, maps[-1], f"head.neck.extra.{index}", padding))
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    logits = _predictions(graph, maps, "classification_head", num_classes, predictor)
    deltas = _predictions(graph, maps, "regression_head", 4, predictor)
    graph.intermediate = {"cls_logits": logits, "bbox_regression": deltas}
    anchors = default_boxes(sizes, (height, width), reduce_lowest_anchors, clip_anchors)
    boxes = _decode(graph, deltas, anchors, (height, width))
    scored = graph.node("Sigmoid", logits) if scores == "sigmoid" else graph.node("Softmax", logits, axis=-1)
    by_class = graph.node("Transpose", scored, perm=[0, 2, 1])
    candidates = min(topk_candidates, len(anchors))
    candidate_boxes, candidate_scores = _candidates(graph, boxes, by_class, num_classes, candidates)
    kept = _suppress(graph, candidate_boxes, candidate_scores, candidates, nms_thresh, score_thresh)
    total = (num_classes - 1) * candidates
    kept = graph.node("Reshape", kept, graph.constant([-1, total]))
    best, places = graph.node_with_outputs("TopK", 2, kept, graph.constant([min(detections_per_img, total)]), axis=1)
    found = graph.integer("Cast", graph.node("Greater", best, graph.constant(0.0)), to=INT64)
    labels = graph.node("Add", graph.node("Div", places, graph.constant(candidates)), graph.constant(1))
    at_places = graph.node("Unsqueeze", places, graph.constant([2]))
    found_boxes = graph.node("GatherND", candidate_boxes, at_places, batch_dims=1)
    scale = graph.node(
        "Div", graph.node("Cast", graph.size_of(original), to=FLOAT), graph.constant([float(height), float(width)])
    )
    scale = graph.node("Gather", scale, graph.constant([1, 0, 1, 0]))
    found_column = graph.node("Unsqueeze", graph.node("Cast", found, to=FLOAT), graph.constant([2]))
    return {
        "boxes": graph.node("Mul", graph.node("Mul", found_boxes, scale), found_column),
        "scores": best,
        "labels": graph.integer("Mul", labels, found),
        "num_detections": graph.integer("ReduceSum", found, graph.constant([1]), keepdims=0),
    }


def default_boxes(
    sizes: Sequence[tuple[int, int]], image: tuple[int, int], reduce_lowest: bool, clip: bool = True
) -> NDArray[np.float32]:
    """Return SSD's default boxes (arXiv 1512.02325, section 2.2).

    Args:
        sizes: height and width of each map, the finest first.
        image: height and width of the image in pixels.
        reduce_lowest: whether the finest map has three boxes per location instead of six.
        clip: whether to limit the width and height of boxes to those of the image.

    Returns:
        Boxes (A, 4) as x1, y1, x2, y2 in pixels.
    """
    steps = len(sizes) - 1
    scales = [*(SMALLEST + (LARGEST - SMALLEST) * level / steps for level in range(len(sizes))), 1.0]
    pixels = np.array([image[1], image[0]], np.float32)
    boxes = []
    for level, ((height, width), scale) in enumerate(zip(sizes, scales, strict=False)):
        shapes = [(scale, scale), (sqrt(scale * scales[level + 1]),) * 2]
        for ratio in SSD_RATIOS:
            shape = scale * sqrt(ratio), scale / sqrt(ratio)
            shapes += [shape, shape[::-1]]
        if reduce_lowest and level == 0:
            shapes = [(SMALLEST_ANCHOR, SMALLEST_ANCHOR), shapes[2], shapes[3]]
        half = 0.5 * np.array(shapes, np.float32).clip(0, 1 if clip else None)
        rows, columns = ((np.arange(side, dtype=np.float32) + 0.5) / np.float32(side) for side in (height, width))
        centers = np.array([(x, y) for y, x in product(rows, columns)], np.float32)[:, None]
        corners = np.concatenate([(centers - half) * pixels, (centers + half) * pixels], axis=-1)
        boxes.append(corners.reshape(-1, 4))
    return np.concatenate(boxes)


def _separable_layer(graph: Graph, x: str, path: str, padding: Padding) -> str:
    groups = len(graph.tensor(f"{path}.1.0.weight"))
    x = _relu6_layer(graph, x, f"{path}.0")
    x = _relu6_layer(graph, x, f"{path}.1", stride=2, padding=padding, groups=groups)
    return _relu6_layer(graph, x, f"{path}.2")


def _full_layer(graph: Graph, x: str, path: str, padding: Padding) -> str:
    return _relu6_layer(graph, _relu6_layer(graph, x, f"{path}.0"), f"{path}.1", stride=2, padding=padding)


def _separable_predictor(graph: Graph, x: str, path: str) -> str:
    groups = len(graph.tensor(f"{path}.0.0.weight"))
    return graph.convolution(_relu6_layer(graph, x, f"{path}.0", padding=1, groups=groups), f"{path}.1")


def _full_predictor(graph: Graph, x: str, path: str) -> str:
    return graph.convolution(x, path, padding=graph.tensor(f"{path}.weight").shape[-1] // 2)


def _relu6_layer(graph: Graph, x: str, path: str, **options: Any) -> str:
    return graph.activation(graph.convolution(x, f"{path}.0", f"{path}.1", **options), "relu6")


def _predictions(
    graph: Graph, maps: Sequence[str], part: str, columns: int, predictor: Callable[[Graph, str, str], str]
) -> str:
    """Append the predictors of all maps, and return their predictions (N, A, columns) for all A anchors."""
    levels = []
    for index, x in enumerate(maps):
        predicted = predictor(graph, x, f"{PREDICTOR}.{part}.module_list.{index}")
        rows = graph.node("Transpose", predicted, perm=[0, 2, 3, 1])
        levels.append(graph.node("Reshape", rows, graph.constant([0, -1, columns])))
    return graph.node("Concat", *levels, axis=1)


def _decode(graph: Graph, deltas: str, anchors: NDArray[np.float32], image: tuple[int, int]) -> str:
    """Append the decoding of predictions (N, A, 4) to boxes (N, A, 4), clipped to the resized image, in its pixels."""
    spans = anchors[:, 2:] - anchors[:, :2]
    centers, sides = graph.constant(anchors[:, :2] + np.float32(0.5) * spans), graph.constant(spans)
    offset, log_scale = graph.node_with_outputs("Split", 2, deltas, axis=2, num_outputs=2)
    offset, log_scale = (
        graph.node("Div", x, graph.constant(weight)) for x, weight in zip((offset, log_scale), BOX_WEIGHTS, strict=True)
    )
    center = graph.node("Add", graph.node("Mul", offset, sides), centers)
    scale = graph.node("Exp", graph.node("Min", log_scale, graph.constant(MAXIMUM_LOG_SCALE)))
    half = graph.node("Mul", graph.node("Mul", scale, sides), graph.constant(0.5))
    corners = graph.node("Concat", graph.node("Sub", center, half), graph.node("Add", center, half), axis=2)
    limits = graph.constant(np.array([image[1], image[0]] * 2, np.float32))
    return graph.node("Min", graph.node("Max", corners, graph.constant(0.0)), limits)


def _candidates(graph: Graph, boxes: str, scores: str, num_classes: int, count: int) -> tuple[str, str]:
    """Append the selection of the `count` best boxes of each class, without the background.

    Takes boxes (N, A, 4) and scores (N, num_classes, A), and returns boxes (N, C * count, 4) and scores (N, C, count).
    """
    objects = graph.node("Slice", scores, graph.constant([1]), graph.constant([num_classes]), graph.constant([1]))
    best, places = graph.node_with_outputs("TopK", 2, objects, graph.constant([count]), axis=2)
    rows = graph.node("Reshape", places, graph.constant([0, -1, 1]))
    return graph.node("GatherND", boxes, rows, batch_dims=1), best


def _suppress(graph: Graph, boxes: str, scores: str, count: int, overlap: float, least: float) -> str:
    """Append the suppression of boxes that overlap a better box of their class, and return scores (N * C, 1, count).

    The scores of suppressed boxes, and scores not above `least`, become 0. `NonMaxSuppression` uses the same boxes for
    all classes of an image, but here each class has different candidates. Each class of each image is therefore passed
    as an image with one class.
    """
    boxes = graph.node("Reshape", boxes, graph.constant([-1, count, 4]))
    scores = graph.node("Reshape", scores, graph.constant([-1, 1, count]))
    limits = (graph.constant(value) for value in ([count], [overlap], [least]))
    selected = graph.node("NonMaxSuppression", boxes, scores, *limits)
    zeros = graph.node("Mul", scores, graph.constant(0.0))
    return graph.node("ScatterND", zeros, selected, graph.node("GatherND", scores, selected))
