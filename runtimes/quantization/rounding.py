"""Round weights with error compensation (GPTQ), and correct biases for the remaining mean error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from featuretap.runtimes.quantization.affine import Affine
from featuretap.runtimes.quantization.network import Network, attributes_of, padding_of, run_node
from featuretap.runtimes.quantization.placement import LAYERS, Placement

LARGEST = 127
"""Largest absolute value of a weight's integer."""

LARGEST_SUM = 128
"""Largest absolute sum of the integers of two neighboring input channels. Processors without VNNI add two products with
uint8 activations in saturating 16-bit arithmetic. Depthwise convolutions are exempt: all processors sum them in 32
bits."""

FRACTIONS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
"""Candidate values of a channel's largest integer, as fractions of its largest weight."""

DAMPING = 0.01
"""Damping of the Gram matrix, as a fraction of its mean diagonal."""

MAXIMUM_COLUMNS = 4096
"""Maximum number of weights per output channel for error compensation. Larger layers are rounded to the nearest
integers."""

SMALLEST_RELATIVE = 1e-4
"""Lower bound of a channel's largest weight, as a fraction of the layer's largest weight. The step of the int32 bias is
proportional to the weight scale, so that weights near zero would make the bias overflow."""

SMALLEST = 1e-12
"""Constant damping of the Gram matrix, for inputs that are all zero."""


@dataclass(frozen=True)
class Rounded:
    """Integer weights of a layer.

    Args:
        weights: int8 weights in the layer's shape.
        scales: scale of each output channel (O,).
        bias: corrected float bias (O,).
    """

    weights: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.float32]


def round_layers(
    network: Network,
    placement: Placement,
    affine: Mapping[str, Affine],
    images: Tensor,
    begin: Callable[[int], Callable[[], object]],
) -> dict[str, Rounded]:
    """Round the weights of all quantized layers, in the order of the network.

    The weights of an output channel are rounded in turn, and the remaining ones compensate for the error (GPTQ, arXiv
    2210.17323, algorithm 1). The inputs of a layer come from the network with all earlier layers quantized. The mean
    error of each output channel is then subtracted from the bias (empirical bias correction, arXiv 1906.04721, appendix
    D).

    Args:
        network: the float32 network.
        placement: the operators that run in integers.
        affine: activation → scale and zero point.
        images: preprocessed images (N, C, H, W).
        begin: takes the number of layers and returns a function to call after each layer.

    Returns:
        Weight name → integers of the layer.
    """
    rounded: dict[str, Rounded] = {}
    known: dict[str, Tensor] = {network.image: _stored(network.image, images, affine), **network.constants}
    uses = network.last_uses()
    layers = [node.name for node in network.nodes if node.op_type in LAYERS and node.name in placement.nodes]
    done = begin(len(layers))
    with torch.no_grad():
        for index, node in enumerate(network.nodes):
            inputs = [known[name] if name else None for name in node.input]
            outputs = run_node(node, inputs)
            if node.name in layers:
                x, weight = inputs[0], inputs[1]
                assert x is not None
                assert weight is not None
                integers, scales = _round(node, x, weight)
                (found,) = run_node(node, [x, integers * _column(scales, integers.ndim), *inputs[2:]])
                shift = (outputs[0] - found).mean([0, *range(2, found.ndim)])
                bias = inputs[2] if len(inputs) > 2 else None
                corrected = shift if bias is None else bias + shift
                rounded[node.input[1]] = Rounded(integers.char().numpy(), scales.numpy(), corrected.numpy())
                outputs = [found + shift.reshape([1, -1, *[1] * (found.ndim - 2)])]
                done()
            for name, values in zip(node.output, outputs, strict=True):
                known[name] = _stored(name, values, affine)
            for name in uses.get(index, ()):
                del known[name]
    return rounded


def _stored(name: str, values: Tensor, affine: Mapping[str, Affine]) -> Tensor:
    return affine[name].fake(values) if name in affine else values


def _round(node: onnx.NodeProto, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the integer weights of a layer and the scales (O,) of its output channels."""
    groups = attributes_of(node).get("group", 1)
    transposed = node.op_type == "Gemm" and not attributes_of(node).get("transB", 0)
    # (G, O / G, K): the K weights of each output channel in summation order, by kernel position, then input channel.
    rows = (weight.T if transposed else weight).flatten(1)
    order = torch.arange(rows.shape[1]).reshape(weight.shape[0 if transposed else 1], -1).T.flatten()
    rows = rows[:, order].reshape(groups, -1, rows.shape[1]).double()
    limit = 2 * LARGEST if weight.shape[1] == 1 else LARGEST_SUM
    gram = None
    if rows.shape[2] <= MAXIMUM_COLUMNS:
        gram = _gram(node, x, weight, groups)[:, order][:, :, order]
    scales = _scales(rows, gram, limit)
    ordered = _compensated(rows, gram, scales, limit).reshape(-1, rows.shape[2]).float()
    integers = torch.empty_like(ordered)
    integers[:, order] = ordered
    return (integers.T if transposed else integers).reshape(weight.shape), scales.flatten().float()


def _gram(node: onnx.NodeProto, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Return the Gram matrices (G, K, K) of the inputs that are multiplied with an output channel's weights."""
    if node.op_type == "Gemm":
        return (x.T.double() @ x.double())[None]
    attributes = attributes_of(node)
    total = torch.zeros(groups, weight[0].numel(), weight[0].numel(), dtype=torch.float64)
    for image in x:
        top, left, bottom, right = padding_of(attributes, image.shape[1:], weight.shape[2:])
        padded = functional.pad(image[None], (left, right, top, bottom))
        columns = functional.unfold(
            padded,
            (weight.shape[2], weight.shape[3]),
            attributes.get("dilations", [1, 1]),
            0,
            attributes.get("strides", [1, 1]),
        )
        columns = columns.reshape(groups, weight[0].numel(), -1)
        total += columns @ columns.transpose(1, 2)
    return total


def _scales(rows: Tensor, gram: Tensor | None, limit: int) -> Tensor:
    """Return the scales (G, O / G, 1) with the smallest squared error, weighted by the squared inputs."""
    extremes = rows.abs().amax(2, keepdim=True)
    # Any scale suits a layer whose weights are all zero.
    extremes = extremes.clamp(min=SMALLEST_RELATIVE * (float(extremes.max()) or 1.0)) / LARGEST
    importance = torch.ones(1, 1, 1) if gram is None else gram.diagonal(dim1=1, dim2=2)[:, None]
    candidates = torch.stack([extremes * fraction for fraction in FRACTIONS])
    rounded = [_nearest(rows, scales, limit) * scales for scales in candidates]
    errors = torch.stack([((values - rows).square() * importance).sum(2) for values in rounded])
    # Files store float32 scales, so the integers must be computed with the rounded scale.
    return candidates.gather(0, errors.argmin(0)[None, :, :, None])[0].float().double()


def _nearest(rows: Tensor, scales: Tensor, limit: int) -> Tensor:
    """Return the nearest integers. The second integer of each pair is clipped if their absolute sum exceeds `limit`."""
    integers = (rows / scales).round().clamp(-LARGEST, LARGEST)
    seconds = integers[:, :, 1::2]
    firsts = integers[:, :, : 2 * seconds.shape[2] : 2]
    seconds.copy_(torch.minimum(torch.maximum(seconds, -limit - firsts), limit - firsts))
    return integers


def _compensated(rows: Tensor, gram: Tensor | None, scales: Tensor, limit: int) -> Tensor:
    """Round weights in turn, with compensation for earlier errors.

    Args:
        rows: the weights (G, O / G, K).
        gram: Gram matrices (G, K, K) of the inputs; None rounds to the nearest integers.
        scales: scales (G, O / G, 1) of the output channels.
        limit: maximum absolute sum of each pair of integers.

    Returns:
        The integers (G, O / G, K).
    """
    if gram is None:
        return _nearest(rows, scales, limit)
    factor = _inverse_factor(gram)
    remaining, integers = rows.clone(), torch.empty_like(rows)
    for column in range(rows.shape[2]):
        pair = slice(column - column % 2, column + 1)
        before = torch.cat([integers[:, :, pair.start : column] * scales, remaining[:, :, column : column + 1]], 2)
        integers[:, :, column] = _nearest(before, scales, limit)[:, :, -1]
        error = remaining[:, :, column : column + 1] - integers[:, :, column : column + 1] * scales
        factors = factor[:, None, column, column:] / factor[:, None, column, column : column + 1]
        remaining[:, :, column:] -= error * factors
    return integers


def _inverse_factor(gram: Tensor) -> Tensor:
    """Return the upper Cholesky factors of the inverse Gram matrices (G, K, K)."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1, keepdim=True) + SMALLEST
    damped = gram + torch.diag_embed(damping.expand_as(diagonal))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def _column(scales: Tensor, dimensions: int) -> Tensor:
    return scales.reshape(-1, *[1] * (dimensions - 1))
