"""Small data sets that a small model learns in seconds, and run configurations for them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featuretap.workflows.training.configuration import Configuration, make_configuration

COLOURS = {"blue": 2, "green": 1, "red": 0}


def coloured_folder(path: Path, count: int = 12, size: int = 24) -> Path:
    """Write noisy pictures of three classes, which differ in their strongest color."""
    noise = np.random.default_rng(0)
    for name, channel in COLOURS.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            pixels = noise.integers(0, 120, (size, size, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(path / name / f"{number}.png")
    return path


def small_run(data: Path | str, out: Path, **settings: Any) -> Configuration:
    """Return the configuration of a run that takes a few seconds."""
    usual: dict[str, Any] = {
        "data": str(data),
        "backbone": "mobilenet_v1",
        "options": {"width": 0.25},
        "epochs": 2,
        "batch_size": 8,
        "size": 32,
        "crop_scale": 0.6,
        "workers": 0,
        "out": str(out),
    }
    return make_configuration({**usual, **settings})
