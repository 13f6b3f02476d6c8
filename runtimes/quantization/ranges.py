"""The ranges that 8-bit integers cover, by the error that they cause in the outputs."""

from __future__ import annotations

import numpy as np

from featuretap.runtimes.quantization.statistics import Array, Statistics

LEVELS = 255
"""Steps of 8-bit integers."""

FRACTIONS = 0.9 ** np.arange(32)
"""Candidates of a limit, relative to the extreme: 1 to 0.04."""

BINS = 2048
"""Of the histogram of an activation over all channels."""

ROUNDS = 3
"""Of the search for both limits in turn."""

SMALLEST = 1e-8
"""Of a range, for activations that are zero on all images."""


def best_range(statistics: Statistics) -> tuple[float, float]:
    """Return the limits of an activation, which include 0, with the least weighted squared error of 8-bit integers."""
    lowest, highest = float(statistics.low.min()), max(float(statistics.high.max()), SMALLEST)
    edges = np.linspace(lowest, highest, BINS + 1)
    weights, _ = np.histogram(statistics.centres, edges, weights=statistics.weights)
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
