"""Write the committed files that every later version must still load, and the values that they give.

Run once, at the commit that defines the formats of the files (from the repository root):

    PYTHONPATH=tests python -m support.write_committed_files

Do not run it again to make a failing test pass: files of earlier commits must always load. For a new format, add new
files next to the old ones.

Weights are float16 where that keeps a file small. A file that cannot be small has weights that repeat a short pattern,
and is compressed (.xz).

No AOTInductor package is included: it contains machine code for one kind of CPU, and opens only in the same version of
PyTorch. PyTorch guarantees that torch.export programs (.pt2) open in later versions.
"""

import csv
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from support import TESTS
from support.committed_files import image, recorded
from support.oracles import randomised, with_statistics
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from featuretap import registry

WEIGHTS, TRAINING, EXTRACTION, RUNTIMES = (
    TESTS / subject / "data" for subject in ("weights", "training", "extraction", "runtimes")
)
CLASS_NAMES = ("cat", "dog", "horse")
DETECTOR = {"num_classes": 3, "depthwise": True, "out_channels": 32, "min_size": 160, "max_size": 192}
RCNN = {"num_classes": 3, "out_channels": 8, "min_size": 160, "max_size": 192, "box_score_thresh": 0.0}
SMALL = {"width": 0.05, "reduced_tail": True}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "backbone-with-options": (
        "mobilenet_v3_small",
        {
            "width": 0.35,
            "reduced_tail": True,
            "output_stride": 16,
            "features_only": True,
            "taps": ("C4.expansion", "C2", "C5"),
        },
    ),
    "classifier": ("mobilenet_v1", {**SMALL, "num_classes": 3}),
    "fpn": ("mobilenet_v1", {**SMALL, "head": "fpn", "depthwise": True, "out_channels": 32}),
    "lraspp": ("mobilenet_v3_small", {**SMALL, "head": "lraspp", "num_classes": 2}),
    "ssdlite": ("mobilenet_v1", {**SMALL, "head": "ssdlite", "num_classes": 3, "size": 96, "score_thresh": 0.0}),
    "frozen-norms": (
        "mobilenet_v2",
        {"width": 0.1, "norm": FrozenBatchNorm2d, "features_only": True, "taps": ("C3",)},
    ),
}
"""Models in featuretap's layout."""

LARGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deeplab-v3": ("mobilenet_v1", {**SMALL, "head": "deeplab_v3", "num_classes": 2}),
    "retinanet": ("mobilenet_v1", {**SMALL, **DETECTOR, "head": "retinanet", "score_thresh": 0.0}),
    "fcos": ("mobilenet_v1", {**SMALL, **DETECTOR, "head": "fcos", "score_thresh": 0.0}),
    "faster-rcnn": ("mobilenet_v1", {**SMALL, **RCNN, "head": "faster_rcnn"}),
    "mask-rcnn": ("mobilenet_v1", {**SMALL, **RCNN, "head": "mask_rcnn"}),
    "torchvision-classifier": ("mobilenet_v3_small", {"num_classes": 3}),
    "timm-classifier": ("mobilenet_v3_small", {"num_classes": 3}),
}
"""Models of many parameters; the names begin with the layout where it is another library's."""


@torch.no_grad()
def repeat_a_pattern(model: nn.Module) -> None:
    """Replace large weights with values that compress well."""
    for parameter in model.parameters():
        if parameter.numel() > 1024:
            values = parameter.flatten()
            parameter.copy_(values[:509].repeat(-(-len(values) // 509))[: len(values)].view_as(parameter))


@torch.no_grad()
def spread_scores(model: nn.Module) -> None:
    """Scale up the weights of class scores, because freshly initialized weights make all scores nearly equal."""
    for name, parameter in model.head.named_parameters():
        if parameter.ndim > 1 and "logits" in name:
            parameter.mul_(20)
        elif parameter.ndim > 1 and "_head.conv" in name:
            parameter.mul_(8)


def prepared(model: nn.Module) -> nn.Module:
    """Return the model in float16, with batch-norm statistics that are sensitive to epsilon."""
    description = model.description
    if "norm" in description.options:
        return randomised(model).half()
    detector = registry.spec(description.name, head=description.head).head if description.head else None
    batch = [torch.rand(3, 96, 96) for _ in range(4)]
    if detector and detector.task == "detection":
        targets = [
            {
                "boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]),
                "labels": torch.tensor([1]),
                "masks": torch.ones(1, 96, 96, dtype=torch.uint8),
            }
            for _ in batch
        ]
        return with_statistics(model, lambda model: model(batch, targets)).half()
    return with_statistics(model).half()


def write_weights() -> None:
    values: dict[str, Any] = {}
    for name, (backbone, options) in {**MODELS, **LARGE_MODELS}.items():
        torch.manual_seed(0)
        model = registry.build(backbone, **options)
        if name in LARGE_MODELS:
            repeat_a_pattern(model)
        if model.description.head in ("classification", "retinanet", "fcos"):
            spread_scores(model)
        model = prepared(model)
        if name == "classifier":
            preprocessing = replace(model.description.preprocessing, resize=72, crop=64, interpolation="bicubic")
            model.description = replace(model.description, preprocessing=preprocessing, classes=CLASS_NAMES)
        layout = name.partition("-")[0] if name.startswith(("torchvision", "timm")) else "featuretap"
        path = registry.save(model, WEIGHTS / f"{name}.safetensors", layout)
        values[name] = recorded(registry.load(path))
        if name in LARGE_MODELS:
            path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
            path.unlink()
    torch.manual_seed(0)
    model = prepared(registry.build("mobilenet_v3_small", features_only=True, taps=("C3", "C2")))
    registry.save(model, WEIGHTS / "timm-folder", "timm")
    values["timm-folder"] = recorded(registry.load(WEIGHTS / "timm-folder"))
    write_json(WEIGHTS / "values.json", values)


def write_pictures(folder: Path) -> None:
    """Write three pictures in each of three colors."""
    generator = torch.Generator().manual_seed(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            pixels = torch.randint(0, 120, (16, 16, 3), generator=generator)
            pixels[..., channel] += 100
            Image.fromarray(pixels.byte().numpy()).save(folder / name / f"{number}.png")


def featuretap(*arguments: object) -> str:
    """Run a command, and return its output."""
    command = [Path(sys.executable).with_name("featuretap"), *map(str, arguments)]
    environment = {**os.environ, "FEATURETAP_OFFLINE": "1"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


TRAIN = """\
epochs = 2
batch_size = 4
lr = 0.01
ema = 0.5
freeze = "C4"
unfreeze_every = 2
augment = "trivial"
size = 32
workers = 0
"""


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def write_training() -> None:
    pictures, run = TRAINING / "pictures", TRAINING / "run"
    write_pictures(pictures)
    (TRAINING / "settings.toml").write_text(TRAIN)
    # Use batch-norm statistics of images: with its initial statistics, a model predicts nearly the same for every
    # picture.
    start = WEIGHTS / "classifier.safetensors"
    featuretap("train", pictures, "--config", TRAINING / "settings.toml", "--weights", start, "--out", run)
    for path in (*run.glob("*.png"), run / ".lock"):
        path.unlink()
    shutil.rmtree(run / "logs")
    evaluated = json.loads(
        featuretap("evaluate", pictures, "--part", "all", "--weights", run / "best.safetensors", "--json")
    )
    (predicted,) = json.loads(
        featuretap("predict", pictures / "red" / "0.png", "--weights", run / "last.safetensors", "--json")
    )
    continuation = TRAINING / "continuation"
    shutil.copytree(run, continuation)
    featuretap("train", pictures, "--resume", continuation, "--epochs", 3)
    third = {name: float(history(continuation)[2][name]) for name in ("train_loss", "accuracy", "loss", "lr")}
    shutil.rmtree(continuation)
    write_json(
        TRAINING / "values.json",
        {"evaluated": evaluated, "predicted": predicted["predictions"], "third epoch": third},
    )


def write_extraction() -> None:
    # Computed with the committed weights and pictures.
    featuretap(
        *("extract", TRAINING / "pictures" / "red", "--weights", WEIGHTS / "backbone-with-options.safetensors"),
        *("--taps", "C2,C5", "--pool", "--size", "32x48", "--shard-size", "2", "--out", EXTRACTION / "features"),
    )
    (EXTRACTION / "features" / ".lock").unlink()


def write_exported() -> None:
    RUNTIMES.mkdir()
    torch.manual_seed(0)
    model = with_statistics(registry.build("mobilenet_v1", **SMALL, features_only=True, taps=("C2", "C1.first")))
    for ending in (".onnx", ".xml", ".pt2", ".torchscript"):
        registry.export(model, RUNTIMES / f"backbone{ending}")
    values = {"backbone": recorded(model)}
    red, green, blue = (TRAINING / "pictures" / colour for colour in ("red", "green", "blue"))
    registry.quantize(model, RUNTIMES / "quantized.onnx", [red, green], evaluate_on=blue, size=(32, 32), threads=1)
    quantized = registry.compile(RUNTIMES / "quantized.onnx", threads=1)
    values["quantized"] = recorded(quantized, image(32))
    write_json(RUNTIMES / "values.json", values)


def write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")


WRITERS: tuple[Callable[[], None], ...] = (write_weights, write_training, write_extraction, write_exported)

if __name__ == "__main__":
    for write in WRITERS:
        write()
