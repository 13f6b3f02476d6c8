"""Histograms of activations, weighted by their effect on the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featuretap.runtimes.quantization.network import Network, run_node

Array = NDArray[np.float64]

BINS = 128
"""Number of histogram bins of a channel."""


@dataclass(frozen=True)
class Statistics:
    """Histograms of an activation's channels.

    Args:
        low: minimum of each channel (C,), at most 0.
        high: maximum of each channel (C,), at least 0.
        weights: sum (C, BINS) over each bin of the squared derivatives of the outputs with respect to the values.
    """

    low: Array
    high: Array
    weights: Array

    @property
    def centers(self) -> Array:
        """Bin centers (C, BINS). The outer bins end at the extremes."""
        steps = (np.arange(BINS) + 0.5) / BINS
        return self.low[:, None] + (self.high - self.low)[:, None] * steps


def measure(
    network: Network, activations: Sequence[str], images: Sequence[Tensor], done: Callable[[], object]
) -> dict[str, Statistics]:
    """Measure the weighted histograms of activations.

    A value's weight is its effect on the outputs: the squared derivatives of random projections of the outputs, each
    scaled to norm 1, which estimate the diagonal of the Gauss-Newton matrix (as in BRECQ, arXiv 2102.05426). Without
    these weights, a few outliers at the borders of MobileNetV2's last maps, which hardly affect the outputs, would
    leave only a tenth of the integers for all other values.

    Args:
        network: the float32 network.
        activations: names of the activations.
        images: preprocessed images (1, C, H, W).
        done: called after each image.

    Returns:
        Activation → statistics.
    """
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    for image in images:
        for name, values in _run(network, image, activations)[0].items():
            rows = _by_channel(values)
            low[name] = torch.minimum(low.get(name, torch.zeros(1)), rows.amin(1))
            high[name] = torch.maximum(high.get(name, torch.zeros(1)), rows.amax(1))
    weights = {name: torch.zeros(len(low[name]) * BINS, dtype=torch.float64) for name in activations}
    generator = torch.Generator().manual_seed(0)
    for image in images:
        values_of, outputs = _run(network, image, activations, with_gradients=True)
        projected = [
            (output * torch.randn(output.shape, generator=generator)).sum() / output.detach().norm().clamp(min=1e-12)
            for output in outputs
            if output.requires_grad
        ]
        torch.autograd.backward(projected)
        for name, values in values_of.items():
            if values.grad is not None:
                span = (high[name] - low[name]).clamp(min=1e-12)[:, None]
                bins = ((_by_channel(values.detach()) - low[name][:, None]) * (BINS / span)).long().clamp(0, BINS - 1)
                bins += torch.arange(0, len(weights[name]), BINS)[:, None]
                squares = _by_channel(values.grad).double().square()
                weights[name] += torch.bincount(bins.ravel(), squares.ravel(), len(weights[name]))
        done()
    return {
        name: Statistics(low[name].double().numpy(), high[name].double().numpy(), weights[name].view(-1, BINS).numpy())
        for name in activations
    }


def _by_channel(values: Tensor) -> Tensor:
    """Return values (N, C, ...) as (C, M)."""
    return values.transpose(0, 1).flatten(1) if values.ndim > 1 else values[None]


def _run(
    network: Network, image: Tensor, activations: Sequence[str], *, with_gradients: bool = False
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the activations by name, and the floating-point outputs."""
    known: dict[str, Tensor] = {network.image: image, **network.constants}
    found: dict[str, Tensor] = {}
    uses = network.last_uses()
    wanted = set(activations)
    with torch.set_grad_enabled(with_gradients):
        if network.image in wanted:
            found[network.image] = known[network.image] = _keep(image, with_gradients)
        for index, node in enumerate(network.nodes):
            inputs = [known[name] if name else None for name in node.input]
            for name, values in zip(node.output, run_node(node, inputs), strict=True):
                known[name] = values
                if name in wanted:
                    found[name] = known[name] = _keep(values, with_gradients)
            for name in uses.get(index, ()):
                del known[name]
    outputs = [known[name] for name in network.outputs]
    return found, [output for output in outputs if output.is_floating_point()]


def _keep(values: Tensor, with_gradients: bool) -> Tensor:
    if not with_gradients:
        return values
    values = values if values.requires_grad else values.detach().requires_grad_()
    values.retain_grad()
    return values
