"""Accuracy of a quantized detector and two quantized segmenters, on images that were not used for calibration.

They are trained for a few minutes as in `benchmarks/learning.py`, on shapes pasted on photographs, and evaluated on
shapes pasted on other photographs.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torchvision.transforms.functional import to_pil_image

from benchmarks import learning
from benchmarks.learning import SIZE, TRAINED, Recipe, scores, train
from benchmarks.results import section, table
from benchmarks.shapes import HELD_OUT, TRAINING, Example, examples
from featuretap import registry

CALIBRATED, COMPARED, EVALUATED = 64, 20, 200

RECIPES = (
    *(recipe for recipe in learning.RECIPES if recipe.head in ("ssdlite", "lraspp")),
    # The coarse map is 10×10 pixels; larger rates would reach beyond it.
    Recipe("deeplab_v3", 150, 16, 2e-3, {"freeze": "C2", "atrous_rates": (2, 4, 6)}),
)


def quantized_heads() -> Iterator[str]:
    """Yield a table with metrics of heads in float32 and int8."""
    training, held_out = examples(TRAINED, SIZE, 0, TRAINING), examples(EVALUATED, SIZE, 1, HELD_OUT)
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        calibrated = _write(training[:CALIBRATED], folder / "calibrated")
        compared = _write(held_out[:COMPARED], folder / "compared")
        for recipe in RECIPES:
            torch.manual_seed(0)
            model = recipe.build()
            for _ in train(recipe, model, training):
                pass
            report = registry.quantize(
                model.eval(),
                folder / "model.onnx",
                [calibrated],
                evaluate_on=[compared],
                size=None if recipe.detects else (SIZE, SIZE),
            )
            exact, found = (scores(recipe, each, held_out) for each in (model, registry.compile(report.path)))
            rows += [
                [recipe.head, metric, f"{value:.4f}", f"{found[metric]:.4f}", f"{100 * (found[metric] - value):+.2f}"]
                for metric, value in exact.items()
            ]
    yield section(
        "Heads in 8-bit integers",
        f"Heads on the pretrained mobilenet_v2, trained for a few minutes on {SIZE}×{SIZE} images as in "
        f"`make bench-learning`, calibrated on {CALIBRATED} training images, and evaluated on {EVALUATED} images made "
        "from other photographs.",
        table(["head", "metric", "float32", "int8", "difference in points"], rows),
    )


def _write(chosen: list[Example], folder: Path) -> Path:
    folder.mkdir()
    for number, example in enumerate(chosen):
        to_pil_image(example.image).save(folder / f"{number:03}.png")
    return folder
