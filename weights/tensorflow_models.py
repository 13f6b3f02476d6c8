"""Read tensors and the record of a model from TensorFlow's files: which MobileNet, which head, and which options.

Names and shapes identify the backbone, its width and its classes. Settings of a detector are read from the constants of
a frozen graph. Checkpoints do not have a graph, so detectors in checkpoints get the settings of the Object Detection
API's configurations.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from featuretap.backbones.layouts.tensorflow import LOGITS, NORM_EPS
from featuretap.backbones.mobilenet_v1 import V1
from featuretap.backbones.mobilenet_v2 import V2
from featuretap.backbones.mobilenet_v3 import LARGE, LARGE_MINIMALISTIC, SMALL, SMALL_MINIMALISTIC
from featuretap.heads.layouts.tensorflow import EXTRACTOR, SCALED
from featuretap.specs import BackboneSpec
from featuretap.specs.description import Description
from featuretap.specs.layers import SAME, make_divisible
from featuretap.specs.options import configure, options_of
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import WeightsError
from featuretap.weights.expected_tensors import Shapes, backbone_tensors, without_counters
from featuretap.weights.layouts import CLASSIFICATION, layout_for
from featuretap.weights.metadata import Record
from featuretap.weights.open_file import OpenFile
from featuretap.weights.tensorflow_checkpoints import read_tensorflow_checkpoint
from featuretap.weights.tensorflow_detectors import detector_settings
from featuretap.weights.tensorflow_graphs import FrozenGraph, read_graph
from featuretap.weights.tensorflow_variables import AVERAGE, VARIABLE, Array, as_pytorch

logger = logging.getLogger("featuretap")

TENSORFLOW = "tensorflow"
"""Name of the layout."""

FAMILIES = {
    "MobilenetV1": (V1,),
    "MobilenetV2": (V2,),
    "MobilenetV3": (LARGE, SMALL, LARGE_MINIMALISTIC, SMALL_MINIMALISTIC),
}
"""Scope → tables whose tensors can be in the scope."""

WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.35, 1.3, 1.4, *(hundredths / 100 for hundredths in range(5, 401)))
"""Width multipliers to try: first the multipliers of published models, then all others."""

LABEL_SETS = {(True, 1000): "imagenet1k", (False, 91): "coco"}
"""(is a classifier, number of classes) → label set, as published by TF-slim and the Object Detection API."""

USUAL_SIZE = 224

CROPPED = 0.875
"""Central fraction of an image's side in TF-slim's evaluation (`preprocessing/inception_preprocessing.py`)."""

SIZE_IN_NAME = re.compile(r"mobilenet_v\d.*_(\d{3})(?!\d)")
"""Image size in the names of TF-slim's files, such as `mobilenet_v1_1.0_224.ckpt.index`."""


def read_tensorflow_model(file: OpenFile) -> tuple[dict[str, Array], Record]:
    """Return the tensors of a file in PyTorch's conventions under TensorFlow's names, and the record of its model.

    Args:
        file: a frozen graph (`.pb`) or the `.index` of a checkpoint.

    Returns:
        Name → array, and the record.

    Raises:
        WeightsError: the file cannot be read, or does not contain a known model.
        MissingExtraError: the `protobuf` package is not installed.
    """
    path, graph = file.path, None
    if path.suffix == ".pb":
        graph = read_graph(file)
        stored = graph.constants
        _warn_of_fake_quantization(path, graph)
    else:
        stored = read_tensorflow_checkpoint(file, lambda name: bool(VARIABLE.fullmatch(name.removesuffix(AVERAGE))))
    norm_eps = _norm_eps(path, graph) if graph else NORM_EPS
    tensors = as_pytorch(path, stored, norm_eps)
    return tensors, _identify(path, tensors, graph, norm_eps)


def _identify(path: Path, tensors: Mapping[str, Array], graph: FrozenGraph | None, norm_eps: float) -> Record:
    shapes: Shapes = {name.removeprefix(f"{EXTRACTOR}/"): array.shape for name, array in tensors.items()}
    scope = next((name.partition("/")[0] for name in shapes if name.startswith("Mobilenet")), "")
    table, options = _find_table(path, scope, shapes)
    if graph is None or not _is_padded_explicitly(graph):
        options["padding"] = SAME
    logits = shapes.get(f"{scope}/{LOGITS}/weights")
    head, classes, preprocessing, taps = None, None, _preprocessing(path, graph), table.levels
    if any(name.startswith("BoxPredictor_") for name in shapes):
        head, classes, settings = detector_settings(path, shapes, graph)
        options |= settings
        preprocessing = SCALED
        taps = ("C4.expansion" if "C4.expansion" in table.addresses else "C4", "C5")
    elif logits:
        head, classes, taps = CLASSIFICATION, logits[0], table.levels[-1:]
    label_set = LABEL_SETS.get((head == CLASSIFICATION, classes or 0), "")
    if label_set:
        logger.info("%s: assuming that its %d classes are the classes of %s", path, classes, label_set)
    description = Description(table.name, taps, options, head, classes, preprocessing, classes=label_set)
    parts = ("backbone",) if head in (None, CLASSIFICATION) else ("backbone", "head")
    return Record(description, TENSORFLOW, dict.fromkeys(parts, norm_eps))


def _find_table(path: Path, scope: str, shapes: Shapes) -> tuple[BackboneSpec, dict[str, Any]]:
    """Return the table that matches the tensors, and its options."""
    for table in FAMILIES.get(scope, ()):
        names = layout_for(table, TENSORFLOW).names
        stem, expected = shapes.get(names[table.stem], ()), without_counters(backbone_tensors(table.all_blocks))
        if len(stem) != 4 or not all(names[name] in shapes for name in expected):
            continue
        widths = (width for width in WIDTHS if make_divisible(table.all_blocks[0].out_channels * width) == stem[0])
        for width, reduced in product(widths, (False, True)):
            options = {"width": width, "reduced_tail": reduced, "in_channels": stem[1]}
            defaults = options_of(table)
            spec, _ = configure(table, {**defaults, **options})
            expected = without_counters(backbone_tensors(spec.all_blocks))
            if all(shapes[names[name]] == shape for name, shape in expected.items()):
                return table, {name: value for name, value in options.items() if value != defaults[name]}
    raise WeightsError(
        f"{str(path)!r} contains a {scope or 'detector'} that matches no backbone of any width; use a file of "
        f"TF-slim's {', '.join(FAMILIES)}"
    )


def _norm_eps(path: Path, graph: FrozenGraph) -> float:
    """Return the epsilon of the batch norms of a graph, or the default if all of them are folded."""
    found = {
        float(f"{node.epsilon:.6g}")
        for node in graph.nodes.values()
        if node.operation.startswith("FusedBatchNorm") and node.epsilon is not None
    }
    if len(found) > 1:
        raise WeightsError(
            f"{str(path)!r} has batch norms with {len(found)} epsilons, which is not supported; use a graph with one"
        )
    return found.pop() if found else NORM_EPS


def _is_padded_explicitly(graph: FrozenGraph) -> bool:
    """Return whether separate nodes pad the inputs of convolutions, which means symmetric padding."""
    return any(node.operation == "DepthwiseConv2dNative" and node.padding == "VALID" for node in graph.nodes.values())


def _preprocessing(path: Path, graph: FrozenGraph | None) -> Preprocessing:
    """Return the preprocessing of TF-slim's evaluation for the image size in the graph or in the file's name."""
    inputs = [node.shape for node in graph.nodes.values() if len(node.shape) == 4] if graph else []
    named = SIZE_IN_NAME.search(path.name)
    size = next((height for _, height, *_ in inputs if height > 0), int(named[1]) if named else USUAL_SIZE)
    return Preprocessing(round(size / CROPPED), size, SCALED.mean, SCALED.std)


def _warn_of_fake_quantization(path: Path, graph: FrozenGraph) -> None:
    count = sum(node.operation.startswith("FakeQuant") for node in graph.nodes.values())
    if count:
        logger.warning(
            "%s was trained for 8 bits; ignoring its %d fake-quantization nodes, so outputs differ slightly",
            path,
            count,
        )
