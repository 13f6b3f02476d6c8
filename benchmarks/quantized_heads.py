"""A detector and two segmenters in 8-bit integers: the accuracy that they lose on images they were not calibrated on.

They are trained for minutes as in `benchmarks/learning.py`, on shapes pasted on photographs, and evaluated on shapes
pasted on other photographs.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torchvision.transforms.functional import to_pil_image

from benchmarks import learning
from benchmarks.learning import LEARNED_FROM, SIZE, Recipe, scores, train
from benchmarks.results import section, table
from benchmarks.shapes import HELD_OUT, TRAINING, Example, examples
from featuretap import registry

CALIBRATED, COMPARED, EVALUATED = 64, 20, 200

RECIPES = (
    *(recipe for recipe in learning.RECIPES if recipe.head in ("ssdlite", "lraspp")),
    # The coarse map has 10 pixels a side, beyond which larger rates reach.
    Recipe("deeplab_v3", 150, 16, 2e-3, {"freeze": "C2", "atrous_rates": (2, 4, 6)}),
)


def quantized_heads() -> Iterator[str]:
    """Metrics of heads in float32 and in integers."""
    learned_from, judged = examples(LEARNED_FROM, SIZE, 0, TRAINING), examples(EVALUATED, SIZE, 1, HELD_OUT)
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        calibrated = _write(learned_from[:CALIBRATED], folder / "calibrated")
        compared = _write(judged[:COMPARED], folder / "compared")
        for recipe in RECIPES:
            torch.manual_seed(0)
            model = recipe.build()
            for _ in train(recipe, model, learned_from):
                pass
            report = registry.quantize(
                model.eval(),
                folder / "model.onnx",
                [calibrated],
                evaluate_on=[compared],
                size=None if recipe.detects else (SIZE, SIZE),
            )
            exact, found = (scores(recipe, each, judged) for each in (model, registry.compile(report.path)))
            rows += [
                [recipe.head, metric, f"{value:.4f}", f"{found[metric]:.4f}", f"{100 * (found[metric] - value):+.2f}"]
                for metric, value in exact.items()
            ]
    yield section(
        "Heads in 8-bit integers",
        f"Heads on the pretrained mobilenet_v2, trained on images of {SIZE}×{SIZE} for some minutes as by "
        f"`make bench-learning`, calibrated on {CALIBRATED} of the training images and evaluated on {EVALUATED} images "
        "of other photographs.",
        table(["head", "metric", "float32", "int8", "difference in points"], rows),
    )


def _write(chosen: list[Example], folder: Path) -> Path:
    folder.mkdir()
    for number, example in enumerate(chosen):
        to_pil_image(example.image).save(folder / f"{number:03}.png")
    return folder
