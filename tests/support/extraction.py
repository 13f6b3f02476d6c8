"""Helpers for the extraction tests: a folder of images, a small model, and features from a plain loop."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from support import Completed
from torch import nn
from torchvision.transforms import v2

from featuretap import registry
from featuretap.support.images import read_image

Run = Callable[..., Completed]
SMALL = ("--size", "32x48")


def photograph(seed: int) -> Image.Image:
    """Return a crop of a photograph with an odd size."""
    chosen = random.Random(seed)
    whole = Image.fromarray(chosen.choice([data.chelsea, data.coffee, data.rocket])())
    width, height = chosen.randint(40, 120), chosen.randint(40, 120)
    left, top = chosen.randint(0, whole.width - width), chosen.randint(0, whole.height - height)
    return whole.crop((left, top, left + width, top + height))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write eleven images. Some share a name in different folders, and some have non-ASCII names."""
    images = tmp_path / "images"
    for seed, name in enumerate(
        [
            "b.jpg",
            "a.png",
            "a/b.jpg",
            "a/c.jpg",
            "c/b.jpg",
            "ü/猫 1.jpg",
            "ü/a,b\"c'.png",
            "z1.JPG",
            "z10.jpg",
            "z2.jpg",
        ]
    ):
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(seed).save(path)
    photograph(99).convert("L").save(images / "grey.png")
    (images / "notes.txt").write_text("no image")
    return images


@pytest.fixture
def model() -> nn.Module:
    return registry.build("mobilenet_v3_small", width=0.25, features_only=True).eval()


@pytest.fixture
def weights(tmp_path: Path, model: nn.Module) -> Path:
    return registry.save(model, tmp_path / "small.safetensors")


@pytest.fixture
def extract(run: Run, weights: Path) -> Run:
    """Run `featuretap extract` with the small model on small images."""

    def extract(*arguments: object) -> Completed:
        return run("extract", "--weights", weights, *(() if "--size" in arguments else SMALL), *arguments)

    return extract


def names_in(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".png")]


def plainly(model: nn.Module, folder: Path, prepare: Callable[[Any], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same features, computed in a plain loop over the images."""
    with torch.no_grad():
        maps = [model(prepare(read_image(folder / name))[None]) for name in names_in(folder)]
    return {tap: torch.cat([each[tap] for each in maps]) for tap in maps[0]}


def resized(image: Image.Image) -> torch.Tensor:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps = [v2.Resize((32, 48)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose(steps)(image)  # type: ignore[no-any-return]


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def close(values: Any, expected: torch.Tensor) -> bool:
    return bool(np.abs(np.asarray(values) - expected.numpy()).max() < 1e-5 * expected.abs().max())
