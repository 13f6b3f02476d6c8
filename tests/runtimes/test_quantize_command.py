"""`featuretap quantize`: the report as a table and as JSON, and one-line errors for bad input."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image
from skimage import data
from support import Completed
from support.oracles import with_statistics

from featuretap import registry

Run = Callable[..., Completed]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    cat, chosen = Image.fromarray(data.chelsea()), random.Random(0)
    for number in range(10):
        left, top = chosen.randint(0, 250), chosen.randint(0, 100)
        cat.crop((left, top, left + 200, top + 200)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = with_statistics(registry.build("mobilenet_v1_025", num_classes=3))
    return registry.save(model, tmp_path_factory.mktemp("weights") / "small.safetensors")


def test_a_file_of_weights_becomes_one_in_integers(run: Run, weights: Path, images: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.onnx"
    (images / "zero.png").touch()
    ran = run("quantize", weights, target, "--images", images, "--size", 64)
    (images / "zero.png").unlink()
    assert ran.status == 0
    assert ran.err == (
        f"{str(images / 'zero.png')!r} is empty; use a JPEG, PNG or other image file\n"
        "featuretap: skipped 1 of 11 images, which cannot be read\n"
    )
    lines = [line for line in ran.out.splitlines() if line.strip() and "──" not in line]
    size = f"{target.stat().st_size:,}"
    assert lines[0].startswith(f"{target}: {size} bytes, ")
    assert [line.split()[0] for line in lines[1:6]] == ["dtype", "float32", "int8", "output", "logits"]
    assert lines[3].split()[1] == size
    assert lines[-1] == "Calibrated on 8 images, compared on 2 others (every fifth image of --images)."
    assert registry.compile(target)(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_taps_of_a_bare_backbone_as_json(run: Run, weights: Path, images: Path, tmp_path: Path) -> None:
    target, evaluated = tmp_path / "taps.onnx", images / "9.png"
    calibrated = [part for number in range(3) for part in ("--images", images / f"{number}.png")]
    ran = run("quantize", weights, target, *calibrated, "--evaluate-on", evaluated, "--taps", "C1,C2", "--json")
    assert (ran.status, ran.err) == (0, "")
    said: dict[str, Any] = json.loads(ran.out)
    assert (said["path"], said["calibrated"], said["evaluated"]) == (str(target), 3, [str(evaluated)])
    assert list(said["agreement"]) == ["C1", "C2"]
    assert said["bytes"]["int8"] == target.stat().st_size
    assert set(said["seconds"]) == {"float32", "int8"}


def test_the_report_of_a_detector_names_what_is_compared(run: Run, images: Path, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v1_025", head="ssdlite", size=64, num_classes=3)
    with_statistics(model.backbone)
    weights = registry.save(model, tmp_path / "detector.safetensors")
    ran = run("quantize", weights, tmp_path / "detector.onnx", "--images", images)
    lines = [line for line in ran.out.splitlines() if line.strip() and "──" not in line]
    assert [line.split()[0] for line in lines[4:7]] == ["output", "cls_logits", "bbox_regression"]
    assert lines[7] == "Boxes are decoded and selected in float32, from cls_logits and bbox_regression."
    assert (ran.status, ran.err) == (0, "")


def test_a_budget_and_the_sensitivity_of_layers(run: Run, weights: Path, images: Path, tmp_path: Path) -> None:
    target, drawn = tmp_path / "small.onnx", tmp_path / "layers.png"
    ran = run(
        *("quantize", weights, target, "--images", images, "--size", 32, "--taps", "C1,C2"),
        *("--budget", 0.01, "--picture", drawn),
    )
    assert (ran.status, ran.err) == (0, "")
    lines = [line for line in ran.out.splitlines() if "──" not in line]
    start = next(place for place, line in enumerate(lines) if line.startswith("layer "))
    end = lines.index("Sensitivity: relative error of the outputs when only this layer is quantized.")
    rows = [line.split() for line in lines[start + 1 : end] if "less sensitive" not in line]
    in_float = [row[0] for row in rows if row[2] == "float32"]
    stated = {prop.key: prop.value for prop in onnx.load(target).metadata_props}["featuretap.quantized"]
    assert json.loads(stated)["in_float32"] == in_float
    assert in_float
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)
    loss, stated_limit = lines[end + 1].removeprefix("Budget: ").split(" of ", 1)
    assert float(loss) <= 0.01
    assert stated_limit.startswith(
        f"0.01 used (relative error), with {len(in_float)} of {len(rows)} layers in float32, which adds "
    )
    assert lines[-1] == f"picture: {drawn}"
    with Image.open(drawn) as opened:
        assert opened.format == "PNG"


def test_any_budget_holds_with_all_layers_in_float(run: Run, weights: Path, images: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.onnx"
    arguments = ("--images", images, "--size", 32, "--taps", "C1", "--budget", "1e-12", "--json")
    ran = run("quantize", weights, target, *arguments)
    assert (ran.status, ran.err) == (0, "")
    report = json.loads(ran.out)
    assert report["budget"]["loss"] == 0
    assert sorted(report["in_float32"]["layers"]) == sorted(report["sensitivity"])


@pytest.fixture
def labeled(images: Path, tmp_path: Path) -> Path:
    """A data set with five validation images."""
    for number, path in enumerate(sorted(images.iterdir())):
        folder = tmp_path / "data" / ("train", "val")[number % 2] / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return tmp_path / "data"


def test_a_budget_on_labeled_images(run: Run, weights: Path, images: Path, labeled: Path, tmp_path: Path) -> None:
    arguments = ("quantize", weights, tmp_path / "small.onnx", "--images", images, "--budget", 100, "--data", labeled)
    printed = run(*arguments)
    assert (printed.status, printed.err) == (0, "")
    ran = run(*arguments, "--json")
    assert (ran.status, ran.err) == (0, "")
    said: dict[str, Any] = json.loads(ran.out)
    assert (said["budget"]["measure"], said["budget"]["limit"]) == ("points of accuracy", 100)
    assert (said["budget"]["metric"], said["budget"]["images"]) == ("accuracy", 5)
    scores = said["budget"]["scores"]
    assert scores["float32"] - scores["int8"] == pytest.approx(said["budget"]["loss"])
    assert (
        f"Budget: {said['budget']['loss']:.3g} of 100 used (points of accuracy), with all "
        f"{len(said['sensitivity'])} layers in int8.\n"
        f"Measured on 5 labeled images: accuracy {scores['float32']:.2f}% in float32, {scores['int8']:.2f}% in int8.\n"
    ) in printed.out
    assert said["in_float32"] == {"layers": [], "bytes_added": 0}
    assert "head.logits" in said["sensitivity"]


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "an ending of no ONNX file": (
        ("mobilenet_v2", "model.xml", "--images", "IMAGES"),
        "quantized models are ONNX files; the name of 'model.xml' must end in .onnx",
    ),
    "no such folder": (
        ("mobilenet_v2", "model.onnx", "--images", "nowhere"),
        "there is no folder or image 'nowhere'; give folders of images, or image files",
    ),
    "random weights": (
        ("mobilenet_v2", "model.onnx", "--images", "IMAGES", "--weights", "none"),
        "cannot quantize random weights; choose trained weights, or leave --weights out",
    ),
    "a budget of zero": (
        ("mobilenet_v2", "model.onnx", "--images", "IMAGES", "--budget", "0"),
        "the budget must be a positive number: a relative error, or points of the metric if labeled images are given; "
        "got 0.0",
    ),
    "labeled images without a budget": (
        ("mobilenet_v2", "model.onnx", "--images", "IMAGES", "--data", "digits"),
        "labeled images have no effect without a budget; set --budget",
    ),
    "a picture without a budget": (
        ("mobilenet_v2", "model.onnx", "--images", "IMAGES", "--picture", "layers.png"),
        "--picture plots what --budget measures; add --budget, or leave --picture out",
    ),
    "a picture that is no PNG": (
        ("mobilenet_v2", "model.onnx", "--images", "IMAGES", "--budget", "0.1", "--picture", "layers.svg"),
        "pictures are PNG files; the name of 'layers.svg' must end in .png",
    ),
    "weights of a file": (
        ("WEIGHTS", "model.onnx", "--images", "IMAGES", "--weights", "other.pth"),
        "the file 'WEIGHTS' already contains weights; leave --weights out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str, run: Run, weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[case]
    places = {"IMAGES": str(images), "WEIGHTS": str(weights)}
    ran = run("quantize", *(places.get(argument, argument) for argument in arguments))
    assert (ran.status, ran.out) == (2, "")
    assert words.replace("WEIGHTS", str(weights)) in ran.err
    assert ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_head_with_fresh_classes_is_refused(run: Run, images: Path, tmp_path: Path) -> None:
    bare = registry.save(registry.build("mobilenet_v1_025", features_only=True), tmp_path / "bare.safetensors")
    ran = run("quantize", "mobilenet_v1_025", tmp_path / "model.onnx", "--images", images, "--weights", bare)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        "featuretap: cannot quantize 'mobilenet_v1_025': its classifier is randomly initialized; train it, or add "
        "--features-only\n"
    )
