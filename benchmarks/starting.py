"""Listing models, building a model, and loading weights."""

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
    """Return a function that runs a new Python process."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def listing() -> Iterator[str]:
    """Yield a table of complete processes that list all models."""
    contenders = {
        "`timm.list_models()`": _process("-c", "import timm; timm.list_models()"),
        "`featuretap list`": _process("-m", "featuretap.command_line", "list"),
    }
    yield section("List all models", "A complete process. 9 rounds.", milliseconds(timed(contenders, 9, warm_up=1)))


def building() -> Iterator[str]:
    """Yield tables of building backbones (C1 to C5) and classifiers, randomly initialized."""
    for what, builders in (("features, C1 to C5", FEATURES), ("classifier", CLASSIFIERS)):
        yield section(
            f"Build {NAME}, {what}",
            "Randomly initialized once. 21 rounds.",
            milliseconds(timed(builders, rounds=21)),
        )


def loading() -> Iterator[str]:
    """Yield a table of building the classifier and loading its weights, in the usual format of each library."""
    with TemporaryDirectory() as folder:
        model = registry.build(NAME)
        native = registry.save(model, Path(folder) / "featuretap.safetensors")
        timm_file = registry.save(model, Path(folder) / "timm.safetensors", "timm")
        state = safetensors.torch.load_file(registry.save(model, Path(folder) / "x.safetensors", "torchvision"))
        pickled = Path(folder) / "torchvision.pth"
        torch.save(state, pickled)

        def build_torchvision() -> nn.Module:
            built = torchvision.models.mobilenet_v3_large()
            built.load_state_dict(torch.load(pickled, weights_only=True))
            return built

        contenders = {
            "timm, safetensors": lambda: timm.create_model("mobilenetv3_large_100", checkpoint_path=timm_file),
            "torchvision, .pth": build_torchvision,
            "featuretap, safetensors": lambda: registry.load(native),
            "featuretap, torchvision's .pth": lambda: registry.build(NAME, pretrained=pickled),
        }
        yield section(
            f"Build {NAME}, classifier, and load its weights",
            "The file is cached by the file system. 41 rounds.",
            milliseconds(timed(contenders, rounds=41)),
        )
