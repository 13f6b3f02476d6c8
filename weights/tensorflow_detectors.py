"""Settings of detectors of TensorFlow's Object Detection API, read from the constants of frozen graphs."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featuretap.heads.detection import LARGEST, SMALLEST, SMALLEST_ANCHOR, SSD_RATIOS
from featuretap.support.errors import WeightsError
from featuretap.weights.expected_tensors import Shapes
from featuretap.weights.tensorflow_graphs import FrozenGraph
from featuretap.weights.tensorflow_messages import refuse
from featuretap.weights.tensorflow_variables import Array

logger = logging.getLogger("featuretap")

USUAL = {
    "size": 300,
    "resizing": "asymmetric",
    "scores": "sigmoid",
    "score_thresh": 1e-8,
    "nms_thresh": 0.6,
    "detections_per_img": 100,
}
"""Settings in the configurations of the Object Detection API (`samples/configs/ssd_*`)."""

SIZE = re.compile(r"Preprocessor/.*Resize.*(stack|size)")
ANCHOR_RATIOS = re.compile(r"MultipleGridAnchorGenerator/Sqrt(_(\d+))?/x")
ANCHOR_SCALES = re.compile(r"MultipleGridAnchorGenerator/mul_\d+/x")
BOX_SCALES = re.compile(r"Postprocessor/Decode/(truediv|div)(_([123]))?/y")
OVERLAP = re.compile(r"Postprocessor/.*/iou_threshold")
LEAST_SCORE = re.compile(r"Postprocessor/.*/score_threshold")
MOST_BOXES = re.compile(r"Postprocessor/.*/PadOrClipBoxList/sub(_\d+)?/[xy]")

SCORES = {"Sigmoid": "sigmoid", "Softmax": "softmax"}
CODER = (10.0, 10.0, 5.0, 5.0)
"""Divisors of the predicted y, x, height and width."""

CLOSE = 1e-3
"""Relative tolerance for anchors. TensorFlow's configurations contain 1/3 as 0.3333."""

REDUCED = 3
"""Boxes per position of the finest map, if it has fewer than the other maps."""


def detector_settings(path: Path, shapes: Shapes, graph: FrozenGraph | None) -> tuple[str, int, dict[str, Any]]:
    """Return the name of a detector's head, its number of classes including the background, and its options.

    Args:
        path: path of the file, for messages.
        shapes: name → shape of its tensors.
        graph: the graph, or None for a checkpoint.

    Returns:
        Name, number of classes and options.

    Raises:
        WeightsError: the predictors are inconsistent, or no head supports the detector's anchors or box coder.
    """
    kernel = shapes.get("BoxPredictor_0/ClassPredictor/weights", ())
    lowest, logits = (
        shapes.get(f"BoxPredictor_0/{name}/biases") for name in ("BoxEncodingPredictor", "ClassPredictor")
    )
    boxes = lowest[0] // len(CODER) if lowest else 0
    if not boxes or not logits or not kernel or logits[0] % boxes or logits[0] // boxes < 2:
        raise refuse(path, "its first predictor has no classes")
    settings = {**USUAL, **(_read(path, graph) if graph else {})}
    if graph is None:
        logger.info("%s has no graph; using the default settings of the detector: %s", path, settings)
    options = {**settings, "clip_anchors": False, "reduce_lowest_anchors": boxes == REDUCED}
    kind = "ssdlite" if "BoxPredictor_0/ClassPredictor_depthwise/depthwise_weights" in shapes else "ssd"
    if kind == "ssd":
        options["predictor_kernel"] = kernel[-1]
    return kind, logits[0] // boxes, options


def _read(path: Path, graph: FrozenGraph) -> dict[str, Any]:
    _check_anchors(path, graph.constants)
    coder = {match[3] or "0": array for match, array in _named(graph, BOX_SCALES)}
    if any(not np.allclose(array, CODER[int(place)]) for place, array in coder.items()):
        raise WeightsError(
            f"{str(path)!r} has a box coder with other scales than {CODER}, which no head supports; use a detector "
            "with these scales"
        )
    found: dict[str, Any] = {}
    for _, array in _named(graph, SIZE):
        if array.shape == (2,):
            height, width = map(int, array)
            found["size"] = height if height == width else (height, width)
    if any(node.operation == "ResizeBilinear" and node.half_pixel_centers for node in graph.nodes.values()):
        found["resizing"] = "half_pixel"
    operation = next((node.operation for name, node in graph.nodes.items() if name.endswith("/convert_scores")), "")
    if operation in SCORES:
        found["scores"] = SCORES[operation]
    numbers = {
        "nms_thresh": (OVERLAP, float),
        "score_thresh": (LEAST_SCORE, float),
        "detections_per_img": (MOST_BOXES, int),
    }
    for option, (pattern, kind) in numbers.items():
        values = [array for _, array in _named(graph, pattern) if array.shape == ()]
        if values:
            # float32 has six significant digits.
            found[option] = kind(f"{values[0]:.6g}")
    return found


def _named(graph: FrozenGraph, pattern: re.Pattern[str]) -> list[tuple[re.Match[str], Array]]:
    matches = ((pattern.fullmatch(name), array) for name, array in graph.constants.items())
    return [(match, array) for match, array in matches if match]


def _check_anchors(path: Path, constants: Mapping[str, Array]) -> None:
    """Refuse anchors that `featuretap.heads.detection` cannot generate, if the graph contains anchors."""
    matches = [match for match in map(ANCHOR_RATIOS.fullmatch, constants) if match]
    found = [constants[match[0]] for match in sorted(matches, key=lambda match: int(match[2] or 0))]
    levels = len(found)
    for number, ratios in enumerate(found):
        scale = SMALLEST + (LARGEST - SMALLEST) * number / max(levels - 1, 1)
        after = SMALLEST + (LARGEST - SMALLEST) * (number + 1) / max(levels - 1, 1) if number + 1 < levels else 1.0
        expected = [1.0, *(value for ratio in SSD_RATIOS for value in (ratio, 1 / ratio)), 1.0]
        scales = [*[scale] * (len(expected) - 1), (scale * after) ** 0.5]
        if len(ratios) == REDUCED and number == 0:
            expected, scales = [1.0, 2.0, 0.5], [SMALLEST_ANCHOR, scale, scale]
        stated = [constants[name] for name in constants if ANCHOR_SCALES.fullmatch(name)]
        is_stated = any(array.shape == ratios.shape and np.allclose(array, scales, CLOSE) for array in stated)
        if ratios.shape != (len(expected),) or not np.allclose(ratios, expected, CLOSE) or not is_stated:
            raise WeightsError(
                f"{str(path)!r} has anchors with other scales or aspect ratios than SSD's defaults, which no head "
                "supports; use a detector with the default anchors"
            )
