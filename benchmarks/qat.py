"""Quantization-aware training compared with post-training quantization, on scikit-learn's handwritten digits."""

import logging
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.results import section, table
from featuretap import registry
from featuretap.workflows.datasets.formats import open_data
from featuretap.workflows.training.configuration import make_configuration
from featuretap.workflows.training.quantized_file import QUANTIZED, write_image_files
from featuretap.workflows.training.run import evaluate, train

SEEDS = (0, 1, 2)

FINE_TUNING = 5

SETTINGS = {"data": "digits", "size": 32, "val_fraction": 0.5, "batch_size": 64, "crop_scale": 0.6, "workers": 0}
"""Settings of the runs. Half of the images are held out: 898 of 1797, so one image is 0.11 points."""

NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenet_v2, ImageNet weights, 6 epochs": {"backbone": "mobilenet_v2", "pretrained": True, "epochs": 6},
    "mobilenet_v3_small, width 0.25, 40 epochs": {
        "backbone": "mobilenet_v3_small",
        "options": {"width": 0.25, "in_channels": 1},
        "epochs": 40,
        "lr": 4e-3,
    },
}


def accuracies(network: dict[str, Any], seed: int, folder: Path) -> dict[str, float]:
    """Train a network, and return the accuracy in percent of the float32 model and its quantized versions."""
    common: dict[str, Any] = {**SETTINGS, "seed": seed}
    folder.mkdir(parents=True)

    def trained(name: str, **settings: Any) -> Path:
        configuration = make_configuration({**common, **settings, "out": str(folder / name)})
        return train(configuration, log=lambda line: None).folder

    def accuracy(model: Any) -> float:
        metrics, _, _ = evaluate(model, "digits", val_fraction=0.5, seed=seed, log=lambda line: None)
        return 100 * metrics.scores["accuracy"]

    weights = trained("float", **network) / "best.safetensors"
    model, after = registry.load(weights), folder / "after.onnx"
    data = open_data("digits", "classification", val_fraction=0.5, seed=seed)
    images, others = (
        write_image_files(samples, folder / name) for name, samples in (("train", data.train), ("val", data.val))
    )
    registry.quantize(model, after, images, evaluate_on=others)
    longer = trained("longer", weights=str(weights), epochs=FINE_TUNING, lr=1e-4) / "best.safetensors"
    fine_tuned = trained("fine-tuned", weights=str(weights), quantize=True, epochs=FINE_TUNING)
    return {
        "float32": accuracy(model),
        f"float32, fine-tuned for {FINE_TUNING} more epochs": accuracy(registry.load(longer)),
        "int8, post-training quantization": accuracy(registry.compile(after)),
        f"int8, fine-tuned for {FINE_TUNING} epochs with `--quantize`": accuracy(
            registry.compile(fine_tuned / QUANTIZED)
        ),
    }


def qat() -> Iterator[str]:
    """Yield a table with the accuracy of int8 models, with and without fine-tuning."""
    logging.getLogger("featuretap").setLevel("ERROR")
    rows = []
    with TemporaryDirectory() as scratch:
        for title, network in NETWORKS.items():
            runs = [accuracies(network, seed, Path(scratch) / title / str(seed)) for seed in SEEDS]
            for name in runs[0]:
                values = [run[name] for run in runs]
                loss = fmean(run["float32"] - run[name] for run in runs)
                cells = [*(f"{value:.2f}" for value in values), f"{fmean(values):.2f}", f"{loss:.2f}"]
                rows.append([f"{title}: {name}", *cells])
    yield section(
        "Quantization-aware fine-tuning",
        "Accuracy in percent of networks trained on half of scikit-learn's digits, resized to 32×32, and evaluated on "
        "the other half (898 images, 0.11 points each).",
        table(["", *(f"seed {seed}" for seed in SEEDS), "mean", "loss in points"], rows),
    )
