"""What the integers of an activation stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from featuretap.runtimes.quantization.network import Network
from featuretap.runtimes.quantization.placement import Placement
from featuretap.runtimes.quantization.ranges import LEVELS

KNEE = 3.0
"""Where hard-swish begins and ends to be curved, on both sides of 0."""

LEAST_STEPS = 16
"""Of the integers from 0 to 3, for hard-swish to be computed in integers."""


@dataclass(frozen=True)
class Affine:
    """The value of an integer q from 0 to 255 is `scale * (q - zero)`.

    Args:
        scale: a step.
        zero: the integer of 0.
        steps: of the integers from 0 to 3, a whole number, where hard-swish reads them; else 0.
    """

    scale: float
    zero: int
    steps: int = 0

    def fake(self, values: Tensor) -> Tensor:
        """Return values as their integers stand for."""
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero, 0, LEVELS)


def affine_of(network: Network, placement: Placement, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Affine]:
    """Return activation → scale and zero point for its range (low, high)."""
    return {name: _affine(network, placement, name, *ranges[name]) for name in placement.activations}


def _affine(network: Network, placement: Placement, name: str, low: float, high: float) -> Affine:
    after = network.only_consumer(name)
    if after is not None and after.op_type == "HardSwish" and after.name in placement.nodes:
        low, high = min(low, -KNEE), max(high, KNEE)
        steps = floor(KNEE * LEVELS / (high - low))
        if steps >= LEAST_STEPS:
            scale = KNEE / steps
            return Affine(scale, min(max(round(-low / scale), steps), LEVELS - steps), steps)
    scale = (high - low) / LEVELS
    return Affine(scale, min(max(round(-low / scale), 0), LEVELS))
