"""Post-training quantization of a graph: placement, ranges and weight rounding."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from featuretap.runtimes.quantization.affine import Affine, fit_affine
from featuretap.runtimes.quantization.integers import write_integers
from featuretap.runtimes.quantization.network import Network
from featuretap.runtimes.quantization.placement import place
from featuretap.runtimes.quantization.ranges import find_best_range
from featuretap.runtimes.quantization.rounding import Rounded, round_layers
from featuretap.runtimes.quantization.statistics import measure
from featuretap.support.progress import Begin

PIXELS = 32 * 224 * 224
"""Total number of pixels of the calibration images. Half as many raise the error of MobileNetV2's logits from 0.091 to
0.105."""

LEAST_IMAGES = 8


@dataclass(frozen=True)
class Calibrated:
    """A calibrated network, ready to be written in integers.

    Args:
        network: the float32 network.
        affine: activation → scale and zero point.
        rounded: weight name → integers of the layer.
        images: number of calibration images.
    """

    network: Network
    affine: Mapping[str, Affine]
    rounded: Mapping[str, Rounded]
    images: int

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the quantized layers: the names of their weights without ".weight"."""
        return tuple(name.removesuffix(".weight") for name in self.rounded)

    def write(self, in_float: Collection[str] = ()) -> onnx.ModelProto:
        """Return the quantized graph, with the layers `in_float` in float32."""
        return write_integers(self.network, place(self.network, in_float), self.affine, self.rounded)


def calibrate(graph: onnx.ModelProto, images: Sequence[Tensor], begin: Begin) -> Calibrated:
    """Fit activation ranges and rounded weights to images.

    Args:
        graph: the float32 graph.
        images: preprocessed images (1, C, H, W).
        begin: starts a progress step: it takes a label and the number of items, and returns a function to call after
            each item.

    Returns:
        The calibrated network.
    """
    count = max(PIXELS // images[0][0, 0].numel(), LEAST_IMAGES)
    images = images[:: -(-len(images) // count)]
    network = Network(graph)
    placement = place(network)
    statistics = measure(network, placement.activations, images, begin("measuring ranges", len(images)))
    ranges = {name: find_best_range(measured) for name, measured in statistics.items()}
    affine = fit_affine(network, placement, ranges)
    same_size = torch.cat([image for image in images if image.shape == images[0].shape])
    rounded = round_layers(network, placement, affine, same_size, lambda count: begin("rounding weights", count))
    return Calibrated(network, affine, rounded, len(images))
