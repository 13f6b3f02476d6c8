"""MobileNetV2 in 8-bit integers on photographs that it was not calibrated on.

Square cuts of photographs of scikit-image and scikit-learn: of three to calibrate on, of five others to compare on.
Speed also of MobileNetV3-Large, whose weights are fresh, so that nothing is said of its agreement.
"""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images
from torch import nn

from benchmarks.results import section, table
from featuretap import registry
from featuretap.runtimes.quantization.report import Report

CALIBRATED, EVALUATED = 64, 200

LEAST_SIDE = 0.4
"""Of a cut, as a part of the shorter side of its photograph."""


def photographs() -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return those to calibrate on and those to compare on, by name."""
    china, flower = load_sample_images().images
    ours = {"cat": data.chelsea(), "rocket": data.rocket(), "flower": flower}
    others = {"coffee": data.coffee(), "astronaut": data.astronaut(), "china": china, "retina": data.retina()}
    return ours, {**others, "galaxies": data.hubble_deep_field()}


def cut(whole: Mapping[str, NDArray[Any]], count: int, folder: Path) -> Path:
    """Write square cuts of photographs in turn, of random sizes and places."""
    folder.mkdir()
    chosen = random.Random(0)
    for number in range(count):
        name, photograph = list(whole.items())[number % len(whole)]
        image = Image.fromarray(np.asarray(photograph))
        side = round(min(image.size) * chosen.uniform(LEAST_SIDE, 1))
        left, top = chosen.randint(0, image.width - side), chosen.randint(0, image.height - side)
        image.crop((left, top, left + side, top + side)).save(folder / f"{number:03}-{name}.png")
    return folder


def quantization() -> Iterator[str]:
    """Size, speed and agreement of models in integers."""
    torch.manual_seed(0)
    large = registry.build("mobilenet_v3_large", features_only=True)
    models: dict[str, nn.Module] = {
        "mobilenet_v2, classifier": registry.build("mobilenet_v2", pretrained=True),
        "mobilenet_v2, C1 to C5": registry.build("mobilenet_v2", features_only=True, pretrained=True),
        "mobilenet_v3_large, C1 to C5": large,
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        ours, others = photographs()
        calibrated = cut(ours, CALIBRATED, folder / "calibrated")
        evaluated = cut(others, EVALUATED, folder / "evaluated")
        reports = {
            title: registry.quantize(model, folder / "model.onnx", [calibrated], evaluate_on=[evaluated])
            for title, model in models.items()
        }
    near = [
        [f"{title}: {output}", f"{a.cosine:.4f}", f"{a.error:.3f}", "" if a.top1 is None else f"{a.top1:.1%}"]
        for title, report in reports.items()
        if models[title] is not large
        for output, a in report.agreement.items()
    ]
    yield section(
        "8-bit integers",
        f"ONNX Runtime, one image of 224×224, integers against float32, 20 rounds. Calibrated on {CALIBRATED} cuts of "
        f"{', '.join(ours)}, compared on {EVALUATED} of {', '.join(others)}. mobilenet_v3_large has fresh weights, so "
        "that nothing is said of its agreement.",
        table(["", "bytes", "of float32's", "median ms", "of float32's", "quartiles"], [*map(_speed, reports.items())]),
        table(["", "cosine", "relative error", "same class"], near),
    )


def _speed(named: tuple[str, Report]) -> list[str]:
    title, report = named
    timing = report.timings["int8"]
    low, high = timing.ratio_quartiles
    size = f"{report.bytes_after / report.bytes_before:.3f}"
    return [
        title,
        f"{report.bytes_after:,}",
        size,
        f"{timing.median * 1000:.2f}",
        f"{timing.ratio:.3f}",
        f"{low:.3f}–{high:.3f}",
    ]
