"""Weights rounded so that the errors of a layer's outputs cancel, and biases that take up what is left on average."""

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
"""Of the integers of weights."""

LARGEST_SUM = 128
"""Of the weights of two neighbouring input channels. Processors without VNNI add the products of both with activations
up to 255 in 16 bits, which saturate beyond; depthwise convolutions are summed in 32 bits everywhere."""

FRACTIONS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
"""Candidates of the value of a channel's largest integer, relative to its largest weight."""

DAMPING = 0.01
"""Added to the diagonal of a layer's Gram matrix, relative to its mean."""

MAXIMUM_COLUMNS = 4096
"""Weights of an output channel up to which the Gram matrix of a layer is computed; larger layers are rounded to the
nearest integers."""

SMALLEST_RELATIVE = 1e-4
"""Minimum of a channel's largest weight, relative to that of the layer. A bias is stored in 32 bits, in steps that
follow from the weights' scale; for channels with weights near zero they would not hold it."""

SMALLEST = 1e-12
"""Added to the diagonal as well, for inputs that are all zero."""


@dataclass(frozen=True)
class Rounded:
    """Integers of a layer.

    Args:
        weights: int8, in the shape of the layer's weights.
        scales: of each output channel (O,).
        bias: in float (O,), corrected.
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
    """Return weight's name → integers of each layer, in the order of the network.

    Weights are rounded one input at a time, and the error of each is made up for by those that follow (GPTQ, arXiv
    2210.17323, algorithm 1), on what the layer reads in the network whose earlier layers are in integers already. Then
    the mean error of each output channel is subtracted from the bias (empirical bias correction, arXiv 1906.04721,
    appendix D).

    Args:
        network: in float32.
        placement: of the integers.
        affine: activation → its scale and zero point.
        images: (N, C, H, W).
        begin: called with the number of layers; it returns what is called after each.
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
    """Return the integers of a layer's weights, and the scales (O,) of its output channels."""
    groups = attributes_of(node).get("group", 1)
    transposed = node.op_type == "Gemm" and not attributes_of(node).get("transB", 0)
    # (G, O / G, K), with the K weights of each output channel in the order in which they are summed: by place, then by
    # input channel.
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
    """Return the sums of products (G, K, K) of the inputs that the weights of a channel are multiplied with."""
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
    """Return the scales (G, O / G, 1) with the least squared error, weighted by the squares of the inputs."""
    extremes = rows.abs().amax(2, keepdim=True)
    # Of weights that are all zero, any scale will do.
    extremes = extremes.clamp(min=SMALLEST_RELATIVE * (float(extremes.max()) or 1.0)) / LARGEST
    importance = torch.ones(1, 1, 1) if gram is None else gram.diagonal(dim1=1, dim2=2)[:, None]
    candidates = torch.stack([extremes * fraction for fraction in FRACTIONS])
    rounded = [_nearest(rows, scales, limit) * scales for scales in candidates]
    errors = torch.stack([((values - rows).square() * importance).sum(2) for values in rounded])
    # Those of the integers as they are stored.
    return candidates.gather(0, errors.argmin(0)[None, :, :, None])[0].float().double()


def _nearest(rows: Tensor, scales: Tensor, limit: int) -> Tensor:
    """Return the integers of weights, the second of each pair cut where their absolute sum is beyond a limit."""
    integers = (rows / scales).round().clamp(-LARGEST, LARGEST)
    seconds = integers[:, :, 1::2]
    firsts = integers[:, :, : 2 * seconds.shape[2] : 2]
    seconds.copy_(torch.minimum(torch.maximum(seconds, -limit - firsts), limit - firsts))
    return integers


def _compensated(rows: Tensor, gram: Tensor | None, scales: Tensor, limit: int) -> Tensor:
    """Return the integers (G, O / G, K) of weights.

    Args:
        rows: the weights.
        gram: Gram matrices (G, K, K) of the inputs, to compensate for the errors of earlier weights; None for no
            compensation.
        scales: of the output channels (G, O / G, 1).
        limit: of the absolute sum of each pair of integers.
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
    """Return the upper Cholesky factor of the inverse of Gram matrices (G, K, K)."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1, keepdim=True) + SMALLEST
    damped = gram + torch.diag_embed(damping.expand_as(diagonal))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def _column(scales: Tensor, dimensions: int) -> Tensor:
    return scales.reshape(-1, *[1] * (dimensions - 1))
