"""Scale and zero point of quantized activations."""

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
"""Hard-swish is 0 below -KNEE and the identity above KNEE."""

LEAST_STEPS = 16
"""Minimum number of quantization steps between 0 and 3 for which hard-swish is computed in integers."""


@dataclass(frozen=True)
class Affine:
    """Affine quantization to uint8: the integer q stands for `scale * (q - zero)`.

    Args:
        scale: the difference between two neighboring integers.
        zero: the zero point, the integer that stands for 0.
        steps: number of steps between 0 and 3 if a hard-swish reads the activation, in which case 3 falls exactly on an
            integer; otherwise 0.
    """

    scale: float
    zero: int
    steps: int = 0

    def fake(self, values: Tensor) -> Tensor:
        """Return the values after quantization and dequantization."""
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero, 0, LEVELS)


def fit_affine(network: Network, placement: Placement, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Affine]:
    """Choose the scale and zero point of each quantized activation.

    Args:
        network: the float32 network.
        placement: the operators that run in integers.
        ranges: activation → limits (low, high).

    Returns:
        Activation → scale and zero point.
    """
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
