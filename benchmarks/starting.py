"""Listing, building, and building with weights."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from benchmarks.networks import CLASSIFIERS, FEATURES, NAME
from benchmarks.results import milliseconds, section, timed
from featuretap import registry

__all__ = ["building", "listing", "loading"]


def _process(*arguments: str) -> Callable[[], object]:
    """Return a function that runs a fresh Python process."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def listing() -> Iterator[str]:
    """Whole processes that print or make the list of models."""
    contenders = {
        "`timm.list_models()`": _process("-c", "import timm; timm.list_models()"),
        "`featuretap list`": _process("-m", "featuretap.command_line", "list"),
    }
    yield section("List every model", "A whole process. 9 rounds.", milliseconds(timed(contenders, 9, warm_up=1)))


def building() -> Iterator[str]:
    """Backbones that return C1 to C5, and classifiers, with fresh weights."""
    for what, builders in (("features, C1 to C5", FEATURES), ("classifier", CLASSIFIERS)):
        yield section(
            f"Build {NAME}, {what}",
            "Fresh weights, drawn once. 21 rounds.",
            milliseconds(timed(builders, rounds=21)),
        )


def loading() -> Iterator[str]:
    """Build the pretrained classifier from a file that is in the file system's cache, each in its usual format."""
    with TemporaryDirectory() as folder:
        model = registry.build(NAME)
        ours = registry.save(model, Path(folder) / "featuretap.safetensors")
        timms = registry.save(model, Path(folder) / "timm.safetensors", "timm")
        theirs = safetensors.torch.load_file(registry.save(model, Path(folder) / "x.safetensors", "torchvision"))
        pickled = Path(folder) / "torchvision.pth"
        torch.save(theirs, pickled)

        def torchvisions() -> nn.Module:
            built = torchvision.models.mobilenet_v3_large()
            built.load_state_dict(torch.load(pickled, weights_only=True))
            return built

        contenders = {
            "timm, safetensors": lambda: timm.create_model("mobilenetv3_large_100", checkpoint_path=timms),
            "torchvision, .pth": torchvisions,
            "featuretap, safetensors": lambda: registry.load(ours),
            "featuretap, torchvision's .pth": lambda: registry.build(NAME, pretrained=pickled),
        }
        yield section(
            f"Build {NAME}, classifier, and load its weights",
            "The file is in the file system's cache. 41 rounds.",
            milliseconds(timed(contenders, rounds=41)),
        )
