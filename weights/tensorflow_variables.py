"""Variables of TensorFlow's MobileNets in PyTorch's conventions, under TensorFlow's names.

Kernels (height, width, in, out) become (out, in, height, width). Box predictors predict x before y, and the boxes at a
position are in the order of `featuretap.heads.ssd`. State of the optimizer is left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuretap.support.errors import WeightsError
from featuretap.weights.tensorflow_messages import refuse

logger = logging.getLogger("featuretap")

Array = NDArray[Any]

VARIABLE = re.compile(
    r"((FeatureExtractor/)?MobilenetV[123]|BoxPredictor_\d+)/(.+/)?"
    r"(weights|depthwise_weights|biases|gamma|beta|moving_mean|moving_variance)"
)
"""Names of weights and statistics, without the state of optimizers and quantizers."""

FOLDED = re.compile(r"(?P<scope>.+)/(Conv2D|depthwise)_bn_offset")
"""Names of the biases that remain when TensorFlow's graph transforms fold a norm into a convolution."""

AVERAGE = "/ExponentialMovingAverage"

BACKGROUND_FIRST = 1001
"""Classes of TF-slim's ImageNet classifiers: the background, then ImageNet's 1000 classes."""

ANCHOR_ORDER = {6: (0, 5, 1, 2, 3, 4)}
"""Boxes per position → their order in featuretap. TensorFlow has the second square, with the next scale, last."""

BOX_ORDER = (1, 0, 3, 2)
"""TensorFlow predicts y, x, height, width."""


def as_pytorch(path: Path, stored: dict[str, Array], norm_eps: float) -> dict[str, Array]:
    """Return copies of the weights and statistics of a file in PyTorch's conventions.

    Args:
        path: path of the file, for messages.
        stored: name → array as in TensorFlow. Converted arrays are removed, so that only one at a time is in memory
            twice.
        norm_eps: epsilon of the batch norms.

    Returns:
        Name → array.

    Raises:
        WeightsError: there is no MobileNet in the file, or a tensor has the wrong number of dimensions.
    """
    variables = _select(path, stored)
    if not variables:
        raise WeightsError(
            f"{str(path)!r} does not contain a MobileNet of TF-slim or of TensorFlow's Object Detection API; use a "
            "file with names such as MobilenetV2/Conv/weights"
        )
    _complete_norms(path, variables, stored, norm_eps)
    for name, array in variables.items():
        variables[name] = _kernel(path, name, array)
    for scope in sorted({name.partition("/")[0] for name in variables if name.startswith("BoxPredictor_")}):
        _reorder_predictions(path, scope, variables)
    for name in [name for name in variables if "/Logits/" in name and variables[name].shape[:1] == (BACKGROUND_FIRST,)]:
        variables[name] = variables[name][1:]
        if name.endswith("/weights"):
            logger.info("%s has a background class, which is removed", path)
    for name in variables:
        variables[name] = np.array(variables[name], order="C")
    return variables


def _select(path: Path, stored: dict[str, Array]) -> dict[str, Array]:
    """Return the variables, replaced by their moving averages if available, as in TF-slim's evaluation."""
    variables = {name: stored.pop(name) for name in list(stored) if VARIABLE.fullmatch(name)}
    averaged = [name for name in variables if name + AVERAGE in stored]
    if averaged:
        logger.info("%s: using the moving averages of %d tensors instead of their last values", path, len(averaged))
    return variables | {name: stored.pop(name + AVERAGE) for name in averaged}


def _complete_norms(path: Path, variables: dict[str, Array], stored: Mapping[str, Array], norm_eps: float) -> None:
    """Add tensors that norms do not store: gammas of ones, and all tensors of norms folded into convolutions."""
    for name in [name for name in variables if name.endswith("/moving_variance")]:
        gamma = name.removesuffix("moving_variance") + "gamma"
        variables.setdefault(gamma, np.ones_like(variables[name]))
    found = [match for match in map(FOLDED.fullmatch, stored) if match]
    folded = [match for match in found if f"{match['scope']}/BatchNorm/beta" not in variables]
    for match in folded:
        norm, beta = f"{match['scope']}/BatchNorm", stored[match[0]]
        ones, zeros = np.ones_like(beta), np.zeros_like(beta)
        variables |= {f"{norm}/gamma": ones, f"{norm}/beta": beta, f"{norm}/moving_mean": zeros}
        variables[f"{norm}/moving_variance"] = ones * (1 - norm_eps)
    if folded:
        logger.info("%s: %d batch norms are folded into their convolutions", path, len(folded))


def _kernel(path: Path, name: str, array: Array) -> Array:
    if not name.endswith("weights"):
        return array
    if array.ndim != 4:
        raise refuse(path, f"{name} is {array.shape}, not the kernel of a convolution")
    if name.endswith("/depthwise_weights"):
        height, width, channels, multiplier = array.shape
        return array.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return array.transpose(3, 2, 0, 1)


def _reorder_predictions(path: Path, scope: str, variables: dict[str, Array]) -> None:
    biases = variables.get(f"{scope}/BoxEncodingPredictor/biases")
    if biases is None or biases.ndim != 1 or len(biases) % len(BOX_ORDER):
        raise refuse(path, f"{scope} does not predict four values per box")
    anchors = len(biases) // len(BOX_ORDER)
    order = np.array(ANCHOR_ORDER.get(anchors, range(anchors)))
    for predictor, inner in (("BoxEncodingPredictor", np.array(BOX_ORDER)), ("ClassPredictor", None)):
        for kind in ("weights", "biases"):
            name = f"{scope}/{predictor}/{kind}"
            if name not in variables:
                continue
            array = variables[name]
            if not array.size or not array.ndim or anchors == 0 or len(array) % anchors:
                raise refuse(path, f"{name} is {array.shape}, which does not fit {anchors} boxes per position")
            by_anchor = array.reshape(anchors, -1, *array.shape[1:])[order]
            by_anchor = by_anchor if inner is None else by_anchor[:, inner]
            variables[name] = by_anchor.reshape(array.shape)
