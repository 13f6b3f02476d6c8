"""A calibrated model beside the one in float32, with any of its layers in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
from torch import Tensor

from featuretap.runtimes.agreement import Outputs, measure_agreement
from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.model_graphs import graph_of
from featuretap.runtimes.onnx_runtime import onnx_session
from featuretap.runtimes.quantization.detectors import Detector, split_detector, without_outputs
from featuretap.runtimes.quantization.method import Calibrated, calibrate
from featuretap.runtimes.verification import PREDICTIONS
from featuretap.specs.agreement import Agreement
from featuretap.specs.graph import IMAGE
from featuretap.support.progress import Begin


@dataclass(frozen=True)
class CalibratedModel:
    """A model with the ranges of its activations.

    Args:
        exported: the file in float32.
        calibrated: its network.
        detector: the parts of a detector, of which only the network is quantised.
        compared: names of the outputs that are compared.
        threads: of the runtime.
    """

    exported: onnx.ModelProto
    calibrated: Calibrated
    detector: Detector | None
    compared: Sequence[str]
    threads: int

    @property
    def layers(self) -> Collection[str]:
        """Names of the layers in integers, each that of its weights without ".weight"."""
        return self.calibrated.layers

    @property
    def images(self) -> int:
        """Number of images that it was calibrated on."""
        return self.calibrated.images

    def graph(self, in_float: Collection[str] = ()) -> onnx.ModelProto:
        """Return the graph in integers, with some layers in float32 and the outputs that are compared."""
        network = self.calibrated.write(in_float)
        return network if self.detector is None else self.detector.with_network(network)

    def file(self, in_float: Collection[str] = ()) -> onnx.ModelProto:
        """Return the graph of the file, with the outputs and the metadata of the exported one."""
        graph = self.graph(in_float)
        graph = graph if self.detector is None else without_outputs(graph, self.compared)
        del graph.metadata_props[:]
        graph.metadata_props.extend(self.exported.metadata_props)
        return graph

    def measure_agreement(self, images: Iterable[Tensor], in_float: Collection[str] = ()) -> dict[str, Agreement]:
        """Return output → agreement with float32 on images (1, C, H, W)."""
        expected = self.exported if self.detector is None else self.detector.graph
        calls = [call_of(graph, self.compared, self.threads) for graph in (expected, self.graph(in_float))]
        return measure_agreement(self._outputs(calls, image) for image in images)

    def measure_error(self, images: Iterable[Tensor], in_float: Collection[str] = ()) -> float:
        """Return the relative error of the worst output."""
        return max(near.error for near in self.measure_agreement(images, in_float).values())

    def _outputs(self, calls: Iterable[Callable[..., Any]], image: Tensor) -> tuple[Outputs, Outputs]:
        expected, found = (dict(zip(self.compared, call({IMAGE: image.numpy()}), strict=True)) for call in calls)
        return expected, found


def calibrate_model(
    prepared: Exportable, exported: onnx.ModelProto, images: Iterable[Tensor], threads: int, begin: Begin
) -> CalibratedModel:
    """Calibrate a model, or the network of a detector.

    Args:
        prepared: the model.
        exported: its file in float32.
        images: (1, C, H, W).
        threads: of the runtime.
        begin: begins a step.
    """
    network, detector, compared = exported, None, prepared.signature.outputs
    if prepared.detects:
        compared = PREDICTIONS
        detector = split_detector(graph_of(prepared, intermediate=True), compared)
        network = detector.network
        images = map(detector.prepare(threads), images)
    calibrated = calibrate(network, [*images], begin)
    return CalibratedModel(exported, calibrated, detector, compared, threads)


def call_of(graph: onnx.ModelProto, names: Sequence[str], threads: int) -> Callable[..., Any]:
    """Return what runs a graph in ONNX Runtime, and returns the outputs `names`."""
    return partial(onnx_session(graph.SerializeToString(), threads).run, list(names))
