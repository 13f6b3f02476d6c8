"""Weights files written by earlier versions load as the models they were saved from.

`tests/support/write_committed_files.py` wrote the files and recorded the outputs of the models.
"""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.committed_files import assert_close, image, recorded, summary
from torchvision.ops import FrozenBatchNorm2d

from featuretap.registry import Registry

DATA = Path(__file__).parent / "data"
VALUES = json.loads((DATA / "values.json").read_text())

SMALL = {"width": 0.05, "reduced_tail": True}
RCNN = {**SMALL, "out_channels": 8, "min_size": 160, "max_size": 192, "box_score_thresh": 0.0}
ONE_STAGE = {**SMALL, "depthwise": True, "out_channels": 32, "min_size": 160, "max_size": 192, "score_thresh": 0.0}
PYRAMID = ("C2", "C3", "C4", "C5")

DESCRIPTIONS: dict[str, tuple[str, tuple[str, ...], str | None, int | None, dict[str, Any]]] = {
    "backbone-with-options": (
        "mobilenet_v3_small",
        ("C4.expansion", "C2", "C5"),
        None,
        None,
        {"width": 0.35, "reduced_tail": True, "output_stride": 16},
    ),
    "frozen-norms": ("mobilenet_v2", ("C3",), None, None, {"width": 0.1, "norm": "FrozenBatchNorm2d"}),
    "classifier": ("mobilenet_v1", ("C5",), "classification", 3, SMALL),
    "fpn": ("mobilenet_v1", PYRAMID, "fpn", None, {**SMALL, "depthwise": True, "out_channels": 32}),
    "lraspp": ("mobilenet_v3_small", ("C3.depthwise", "C5"), "lraspp", 2, {**SMALL, "output_stride": 16}),
    "deeplab-v3": ("mobilenet_v1", ("C5",), "deeplab_v3", 2, {**SMALL, "output_stride": 16}),
    "ssdlite": ("mobilenet_v1", ("C4", "C5"), "ssdlite", 3, {**SMALL, "size": 96, "score_thresh": 0.0}),
    "retinanet": ("mobilenet_v1", PYRAMID[1:], "retinanet", 3, ONE_STAGE),
    "fcos": ("mobilenet_v1", PYRAMID[1:], "fcos", 3, ONE_STAGE),
    "faster-rcnn": ("mobilenet_v1", PYRAMID, "faster_rcnn", 3, RCNN),
    "mask-rcnn": ("mobilenet_v1", PYRAMID, "mask_rcnn", 3, RCNN),
    "torchvision-classifier": ("mobilenet_v3_small", ("C5",), "classification", 3, {}),
    "timm-classifier": ("mobilenet_v3_small", ("C5",), "classification", 3, {}),
    "timm-folder": ("mobilenet_v3_small", ("C3", "C2"), None, None, {}),
}
"""File → backbone, taps, head, number of classes, options."""


def committed(name: str, folder: Path) -> Path:
    """Return the path of a committed file, first decompressing it into `folder` if it is compressed."""
    compressed = DATA / f"{name}.safetensors.xz"
    if compressed.exists():
        path = folder / compressed.stem
        path.write_bytes(lzma.decompress(compressed.read_bytes()))
        return path
    return DATA / name if (DATA / name).is_dir() else DATA / f"{name}.safetensors"


def test_every_committed_file_has_a_description_and_recorded_values() -> None:
    files = {path.name.partition(".")[0] for path in DATA.iterdir()}
    # Files of schema 1 are tested in test_loading.py.
    assert files - {"values", "schema1-backbone", "schema1-classifier"} == set(DESCRIPTIONS) == set(VALUES)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_committed_file_loads_with_its_description_and_outputs(registry: Registry, tmp_path: Path, name: str) -> None:
    model = registry.load(committed(name, tmp_path))
    description = model.description
    assert DESCRIPTIONS[name] == (
        description.name,
        description.taps,
        description.head,
        description.num_classes,
        dict(description.options),
    )
    assert {tensor.dtype for tensor in model.parameters()} <= {torch.float16}
    assert_close(recorded(model), VALUES[name], 1e-3)


def test_class_names_and_preprocessing_are_read(registry: Registry) -> None:
    description = registry.load(DATA / "classifier.safetensors").description
    assert description.classes == ("cat", "dog", "horse")
    preprocessing = description.preprocessing
    assert (preprocessing.resize, preprocessing.crop, preprocessing.interpolation) == (72, 64, "bicubic")
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert preprocessing.std == (0.229, 0.224, 0.225)


def test_the_norm_class_is_read(registry: Registry) -> None:
    modules = registry.load(DATA / "frozen-norms.safetensors").named_modules()
    assert {type(module) for name, module in modules if name.endswith(".norm")} == {FrozenBatchNorm2d}


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
def test_a_committed_file_of_another_layout_is_converted(registry: Registry, tmp_path: Path, layout: str) -> None:
    name = f"{layout}-classifier"
    converted = registry.convert(committed(name, tmp_path), tmp_path / "converted.safetensors")
    # Layouts with different epsilons require converted values, which float16 rounds.
    assert_close(recorded(registry.load(converted)), VALUES[name], 5e-3)


def test_timm_builds_the_model_of_the_committed_folder() -> None:
    model = timm.create_model(f"local-dir:{DATA}/timm-folder", pretrained=True).eval().float()
    with torch.no_grad():
        maps = dict(zip(("C1", "C2", "C3"), model(image()), strict=True))
    for tap, expected in VALUES["timm-folder"].items():
        assert_close({tap: summary(maps[tap])}, {tap: expected}, 1e-3)
