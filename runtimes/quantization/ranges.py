"""Choose activation ranges by their effect on the outputs."""

from __future__ import annotations

import numpy as np

from featuretap.runtimes.quantization.statistics import Array, Statistics

LEVELS = 255
"""Number of steps of an 8-bit integer."""

FRACTIONS = 0.9 ** np.arange(32)
"""Candidate limits as fractions of the extreme value, from 1 to 0.04."""

BINS = 2048
"""Number of histogram bins of an activation, over all channels."""

ROUNDS = 3
"""Number of rounds in which both limits are searched in turn."""

SMALLEST = 1e-8
"""Minimum upper limit, for activations that are zero on all images."""


def find_best_range(statistics: Statistics) -> tuple[float, float]:
    """Return the limits (low, high) with the smallest weighted squared quantization error. The range includes 0."""
    lowest, highest = float(statistics.low.min()), max(float(statistics.high.max()), SMALLEST)
    edges = np.linspace(lowest, highest, BINS + 1)
    weights, _ = np.histogram(statistics.centers, edges, weights=statistics.weights)
    values = (edges[1:] + edges[:-1]) / 2
    low, high = lowest, highest
    for _ in range(ROUNDS if lowest else 1):
        high = min((highest * FRACTIONS).tolist(), key=lambda limit: _error(values, weights, low, limit))
        if lowest:
            low = min((lowest * FRACTIONS).tolist(), key=lambda limit: _error(values, weights, limit, high))
    return low, high


def _error(values: Array, weights: Array, low: float, high: float) -> float:
    cut = np.minimum(values - low, 0) + np.maximum(values - high, 0)
    rounding = ((high - low) / LEVELS) ** 2 / 12
    return float(weights @ (cut**2 + rounding))
