"""Listing, building, loading and running MobileNetV3-Large: featuretap, timm and torchvision in one run."""

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from benchmarks.timing import report
from featuretap import registry

FEATURES = {f"features.{index}": f"C{level}" for level, index in enumerate((1, 3, 6, 12, 16), start=1)}


def process(*arguments: str) -> Callable[[], object]:
    """Return a function that runs a fresh Python process."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def listing() -> None:
    """Whole processes that print or make the list of models."""
    report(
        "list every model, whole process",
        {
            "timm.list_models()": process("-c", "import timm; timm.list_models()"),
            "featuretap list": process("-m", "featuretap.registry.command_line", "list"),
        },
        rounds=9,
        warm_up=1,
    )


def building() -> None:
    """Backbones that return C1 to C5, and classifiers, with fresh weights."""
    report(
        "build mobilenet_v3_large, features",
        {
            "timm": lambda: timm.create_model("mobilenetv3_large_100", features_only=True),
            "torchvision": lambda: torchvision_features(),
            "featuretap": lambda: registry.build("mobilenet_v3_large", features_only=True),
        },
        rounds=21,
    )
    report(
        "build mobilenet_v3_large, classifier",
        {
            "torchvision": lambda: torchvision.models.mobilenet_v3_large(),
            "timm": lambda: timm.create_model("mobilenetv3_large_100"),
            "featuretap": lambda: registry.build("mobilenet_v3_large"),
        },
        rounds=21,
    )


def torchvision_features() -> nn.Module:
    """Return torchvision's network with the last map of every stride, by its own tool."""
    return create_feature_extractor(torchvision.models.mobilenet_v3_large(), FEATURES)


def loading() -> None:
    """Build the pretrained classifier from a file that is in the file system's cache, each in its usual format."""
    with TemporaryDirectory() as folder:
        model = registry.build("mobilenet_v3_large")
        ours = registry.save(model, Path(folder) / "featuretap.safetensors")
        timms = registry.save(model, Path(folder) / "timm.safetensors", "timm")
        theirs = safetensors.torch.load_file(registry.save(model, Path(folder) / "x.safetensors", "torchvision"))
        pickled = Path(folder) / "torchvision.pth"
        torch.save(theirs, pickled)

        def torchvisions() -> nn.Module:
            built = torchvision.models.mobilenet_v3_large()
            built.load_state_dict(torch.load(pickled, weights_only=True))
            return built

        report(
            "build mobilenet_v3_large, classifier, and load its weights",
            {
                "torchvision, .pth": torchvisions,
                "timm, safetensors": lambda: timm.create_model("mobilenetv3_large_100", checkpoint_path=timms),
                "featuretap, safetensors": lambda: registry.load(ours),
                "featuretap, torchvision's .pth": lambda: registry.build("mobilenet_v3_large", pretrained=pickled),
            },
            rounds=41,
        )


@torch.inference_mode()
def running() -> None:
    """Eager forwards of one image and of eight, C1 to C5."""
    models = {
        "timm": timm.create_model("mobilenetv3_large_100", features_only=True).eval(),
        "torchvision": torchvision_features().eval(),
        "featuretap": registry.build("mobilenet_v3_large", features_only=True).eval(),
    }
    for batch, rounds in ((1, 201), (8, 41)):
        images = torch.randn(batch, 3, 224, 224)
        contenders = {name: (lambda model=model, images=images: model(images)) for name, model in models.items()}
        report(f"features of {batch} × 3 × 224 × 224, eager", contenders, rounds, warm_up=5)


def main() -> None:
    """Run everything."""
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, torchvision {torchvision.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, {torch.get_num_threads()} threads"
    )
    listing()
    building()
    loading()
    running()


if __name__ == "__main__":
    main()
