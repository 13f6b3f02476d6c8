"""A calibrated model and its float32 original, with any selection of layers in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
from torch import Tensor

from featuretap.runtimes.agreement import Outputs, measure_agreement
from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.model_graphs import make_graph
from featuretap.runtimes.onnx_runtime import onnx_session
from featuretap.runtimes.quantization.detectors import Detector, split_detector, without_outputs
from featuretap.runtimes.quantization.method import Calibrated, calibrate
from featuretap.runtimes.verification import PREDICTIONS
from featuretap.specs.agreement import Agreement
from featuretap.specs.graph import IMAGE
from featuretap.support.progress import Begin


@dataclass(frozen=True)
class CalibratedModel:
    """A model with calibrated activation ranges.

    Args:
        exported: the float32 ONNX model.
        calibrated: the calibrated network.
        detector: the parts of a detector, of which only the network is quantized; None for other models.
        compared: names of the outputs that are compared with float32.
        threads: number of runtime threads.
    """

    exported: onnx.ModelProto
    calibrated: Calibrated
    detector: Detector | None
    compared: Sequence[str]
    threads: int

    @property
    def layers(self) -> Collection[str]:
        """Names of the quantized layers: the names of their weights without ".weight"."""
        return self.calibrated.layers

    @property
    def images(self) -> int:
        """Number of calibration images."""
        return self.calibrated.images

    def graph(self, in_float: Collection[str] = ()) -> onnx.ModelProto:
        """Return the quantized graph with the compared outputs and the layers `in_float` in float32."""
        network = self.calibrated.write(in_float)
        return network if self.detector is None else self.detector.with_network(network)

    def file(self, in_float: Collection[str] = ()) -> onnx.ModelProto:
        """Return the quantized graph with the outputs and metadata of the exported file."""
        graph = self.graph(in_float)
        graph = graph if self.detector is None else without_outputs(graph, self.compared)
        del graph.metadata_props[:]
        graph.metadata_props.extend(self.exported.metadata_props)
        return graph

    def measure_agreement(self, images: Iterable[Tensor], in_float: Collection[str] = ()) -> dict[str, Agreement]:
        """Measure how closely the outputs on images (1, C, H, W) match those of the float32 model.

        Args:
            images: preprocessed images.
            in_float: layers that stay in float32.

        Returns:
            Output → agreement.
        """
        expected = self.exported if self.detector is None else self.detector.graph
        calls = [make_call(graph, self.compared, self.threads) for graph in (expected, self.graph(in_float))]
        return measure_agreement(self._outputs(calls, image) for image in images)

    def measure_error(self, images: Iterable[Tensor], in_float: Collection[str] = ()) -> float:
        """Return the largest relative error over the outputs, with the layers `in_float` in float32."""
        return max(near.error for near in self.measure_agreement(images, in_float).values())

    def _outputs(self, calls: Iterable[Callable[..., Any]], image: Tensor) -> tuple[Outputs, Outputs]:
        expected, found = (dict(zip(self.compared, call({IMAGE: image.numpy()}), strict=True)) for call in calls)
        return expected, found


def calibrate_model(
    prepared: Exportable, exported: onnx.ModelProto, images: Iterable[Tensor], threads: int, begin: Begin
) -> CalibratedModel:
    """Calibrate a model, or the network inside a detector.

    Args:
        prepared: the model.
        exported: the model as a float32 ONNX graph.
        images: preprocessed images (1, C, H, W).
        threads: number of runtime threads.
        begin: starts a progress step.

    Returns:
        The calibrated model.
    """
    network, detector, compared = exported, None, prepared.signature.outputs
    if prepared.detects:
        compared = PREDICTIONS
        detector = split_detector(make_graph(prepared, intermediate=True), compared)
        network = detector.network
        images = map(detector.prepare(threads), images)
    calibrated = calibrate(network, [*images], begin)
    return CalibratedModel(exported, calibrated, detector, compared, threads)


def make_call(graph: onnx.ModelProto, names: Sequence[str], threads: int) -> Callable[..., Any]:
    """Return a function that runs a graph in ONNX Runtime and returns the outputs `names`."""
    return partial(onnx_session(graph.SerializeToString(), threads).run, list(names))
